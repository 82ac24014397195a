// `speed [N C]...`: the kernel on reused buffers against a copy of the same bytes, interleaved; OMP_NUM_THREADS sets the threads.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "focal_loss.h"

namespace {

void in_parallel(int64_t n, void (*body)(int64_t, int64_t, void*), void* context) {
#ifdef _OPENMP
#pragma omp parallel
  {
    const int64_t threads = omp_get_num_threads(), me = omp_get_thread_num(), each = (n + threads - 1) / threads;
    const int64_t begin = std::min(n, me * each), end = std::min(n, begin + each);
    if (begin < end) body(begin, end, context);
  }
#else
  body(0, n, context);
#endif
}

struct Copy {
  const char* from;
  char* to;
};

void copy_part(int64_t begin, int64_t end, void* context) {
  const Copy* copy = static_cast<Copy*>(context);
  std::memcpy(copy->to + begin * 4096, copy->from + begin * 4096, size_t(end - begin) * 4096);
}

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

template <typename Call>
double time_of(const Call& call, int repeats) {
  const double start = seconds();
  for (int i = 0; i < repeats; ++i) call();
  return (seconds() - start) / repeats;
}

void measure(int64_t n, int64_t c, zoo::Type type, bool backward) {
  const int64_t size = type == zoo::Type::f32 ? 4 : 2;
  char *logits = nullptr, *grad = nullptr, *source = nullptr, *goal = nullptr;
  const int64_t moved = n * c * size * (1 + backward) + n * 8;
  const int64_t half = (moved / 2 + 4095) / 4096 * 4096;
  for (char** each : {&logits, &grad}) *each = static_cast<char*>(std::aligned_alloc(4096, size_t(n * c * size + 4095) / 4096 * 4096));
  for (char** each : {&source, &goal}) *each = static_cast<char*>(std::aligned_alloc(4096, size_t(half)));
  std::memset(source, 1, size_t(half));
  std::memset(goal, 1, size_t(half));
  std::memset(grad, 0, size_t(n * c * size));
  std::mt19937 draw(0);
  std::normal_distribution<float> normal(0, 3);
  for (int64_t i = 0; i < n * c; ++i) {
    const float value = normal(draw);
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (size == 4) std::memcpy(logits + i * 4, &bits, 4);
    else { const uint16_t brain = uint16_t(bits >> 16); std::memcpy(logits + i * 2, &brain, 2); }
  }
  std::vector<int64_t> target(size_t(n), 0);
  for (auto& t : target) t = int64_t(draw() % uint64_t(c));
  std::vector<float> weight(size_t(c), 1.5f);
  zoo::Problem p;
  p.logits = logits; p.type = type; p.n = n; p.classes = c; p.stride_n = c; p.target = target.data(); p.weight = weight.data();
  if (backward) { p.grad = grad; p.grad_n = c; }
  double best_own = 1e9, best_copy = 1e9;
  std::vector<double> ratios;
  const int repeats = int(std::max<int64_t>(1, 4000000 / (n * c)));
  for (int round = 0; round < 40; ++round) {
    Copy job{source, goal};
    const double copy = time_of([&] { if (half < 1 << 20) copy_part(0, half / 4096, &job); else in_parallel(half / 4096, copy_part, &job); }, repeats);
    const double own = time_of([&] { zoo::focal_loss(p, in_parallel); }, repeats);
    best_own = std::min(best_own, own);
    best_copy = std::min(best_copy, copy);
    ratios.push_back(own / copy);
  }
  std::sort(ratios.begin(), ratios.end());
  std::printf("%8ld x %-6ld %s %s %9.2f us  %6.2f ns/row  copy %9.2f us  x %.2f (median %.2f)\n", long(n), long(c), size == 4 ? "fp32" : "bf16",
              backward ? "fwd+bwd" : "fwd    ", best_own * 1e6, best_own * 1e9 / double(n), best_copy * 1e6, best_own / best_copy, ratios[20]);
  std::free(logits); std::free(grad); std::free(source); std::free(goal);
}

}  // namespace

int main(int argc, char** argv) {
  std::printf("instruction set %s\n", zoo::capability());
  const int64_t sizes[][2] = {{128, 10}, {4096, 10}, {65536, 10}, {1048576, 10}, {4096, 100}, {65536, 100}, {8192, 1000}, {512, 50257}};
  if (argc > 2)
    for (int i = 1; i + 1 < argc; i += 2) for (bool b : {false, true}) for (auto t : {zoo::Type::f32, zoo::Type::bf16}) measure(std::atol(argv[i]), std::atol(argv[i + 1]), t, b);
  else
    for (const auto& size : sizes) measure(size[0], size[1], zoo::Type::f32, true);
  return 0;
}
