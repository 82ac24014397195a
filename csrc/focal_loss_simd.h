// placeholder
namespace zoo {
namespace {
namespace ZOO_ISA {
inline void block(const Call& call, int64_t begin, int64_t end, Sums& sums) {
  for (int64_t row = begin; row < end; ++row) exact_row(call, row, sums);
}
}  // namespace ZOO_ISA
}  // namespace
}  // namespace zoo
