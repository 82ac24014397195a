// The focal loss on the CPU, without torch: a scan of the labels, then blocks of rows, both with the widest instruction set.
//
// The work is divided into blocks that depend only on N and C. Each block has its own sums, which are added in order: the
// result has the same bits for any number of threads.
#include "focal_loss.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <type_traits>

#if defined(__x86_64__) && defined(__GNUC__)
#include <immintrin.h>
#define ZOO_X86 1
#endif

#include "focal_loss_rows.h"

#define ZOO_ISA plain
#define ZOO_W 4
#include "focal_loss_simd.h"
#undef ZOO_ISA
#undef ZOO_W

#ifdef ZOO_X86
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#define ZOO_ISA avx2
#define ZOO_W 8
#include "focal_loss_simd.h"
#undef ZOO_ISA
#undef ZOO_W
#if defined(__clang__)
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#endif
#define ZOO_ISA avx512
#define ZOO_W 16
#include "focal_loss_simd.h"
#undef ZOO_ISA
#undef ZOO_W
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

namespace zoo {
namespace {

struct Set {
  const char* name;
  bool (*has)();
  void (*scan)(const Call&, int64_t begin, int64_t end, Sums&);
  void (*block)(const Call&, int64_t begin, int64_t end, Sums&);
};

const Set sets[] = {
#ifdef ZOO_X86
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
     },
     avx512::scan_block, avx512::block},
    {"avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }, avx2::scan_block, avx2::block},
#endif
    {"default", [] { return true; }, plain::scan_block, plain::block},
};

const Set* best() {
  const char* asked = std::getenv("ZOO_CPU_CAPABILITY");
  for (const Set& set : sets)
    if (set.has() && (asked == nullptr || std::strcmp(asked, set.name) == 0)) return &set;
  for (const Set& set : sets)
    if (set.has()) return &set;
  return &sets[0];
}

const Set* chosen = best();

constexpr int64_t max_blocks = 1024;
constexpr int64_t few_blocks = 8;          // sums of that many blocks are on the stack, which some threads have little of
constexpr int64_t block_elements = 16384;  // largest number of logits in a block: large enough that its sums are negligible
constexpr int64_t threads_from = 32768;  // logits from which a second thread is faster (measured by tests/cpp/speed.cpp)

// Rows per block: the number of blocks is a power of two, which threads share evenly; a block of short rows has a multiple of
// 64 rows, so that it starts on a cache line and consists of whole groups of 4, 8 or 16 rows.
int64_t rows_per_block(int64_t rows, int64_t classes) {
  int64_t blocks = 1;
  while (blocks < max_blocks && blocks < rows && rows * classes > blocks * block_elements) blocks *= 2;
  const int64_t step = classes < 1024 ? 64 : 1;
  return std::max<int64_t>((rows + blocks * step - 1) / (blocks * step) * step, step);
}

struct Work {
  Call call;
  int64_t per_block;
  Sums* sums;
};

void scan_blocks(int64_t begin, int64_t end, void* context) {
  Work& work = *static_cast<Work*>(context);
  for (int64_t b = begin; b < end; ++b)
    chosen->scan(work.call, b * work.per_block, std::min(work.call.rows, (b + 1) * work.per_block), work.sums[b]);
}

void run_blocks(int64_t begin, int64_t end, void* context) {
  Work& work = *static_cast<Work*>(context);
  for (int64_t b = begin; b < end; ++b)
    chosen->block(work.call, b * work.per_block, std::min(work.call.rows, (b + 1) * work.per_block), work.sums[b]);
}

}  // namespace

Result focal_loss(const Problem& problem, Parallel parallel) {
  Result result;
  Work work;
  work.call = Call{problem, problem.n * problem.inner, 0.0};
  const int64_t rows = work.call.rows;
  work.per_block = rows_per_block(rows, problem.classes);
  const int64_t blocks = (rows + work.per_block - 1) / work.per_block;
  Sums few[few_blocks];
  std::unique_ptr<Sums[]> many(blocks > few_blocks ? new Sums[blocks] : nullptr);
  work.sums = many != nullptr ? many.get() : few;
  if (blocks == 1 || rows * problem.classes < threads_from) parallel = nullptr;
  const auto each = [&](void (*body)(int64_t, int64_t, void*)) {
    if (parallel != nullptr) parallel(blocks, body, &work);
    else body(0, blocks, &work);
  };
  each(scan_blocks);
  double count = 0, weight = 0;
  for (int64_t b = 0; b < blocks; ++b) {
    const Sums& sums = work.sums[b];
    if (sums.bad_row >= 0) {
      result.bad_row = sums.bad_row;
      result.bad_label = sums.bad_label;
      return result;
    }
    count += sums.count;
    weight += sums.weight;
  }
  const double over = problem.reduction == Reduction::mean            ? count
                      : problem.reduction == Reduction::weighted_mean ? weight
                                                                      : 1.0;
  work.call.factor = over == 0 ? 0.0 : problem.scale / over;
  each(run_blocks);
  for (int64_t b = 0; b < blocks; ++b) {
    result.loss += work.sums[b].loss;
    result.factor += work.sums[b].power;
  }
  result.loss = problem.reduction == Reduction::none ? 0.0 : result.loss * work.call.factor;
  result.factor = count == 0 ? 0.0 : result.factor / count;
  return result;
}

const char* capability() { return chosen->name; }

bool set_capability(const char* name) {
  for (const Set& set : sets)
    if (std::strcmp(set.name, name) == 0 && set.has()) {
      chosen = &set;
      return true;
    }
  return false;
}

}  // namespace zoo
