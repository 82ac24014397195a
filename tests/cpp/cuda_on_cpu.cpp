// The CUDA kernels of csrc/focal_loss_cuda.h on the CPU, with one fiber per thread and one block after another, against the
// CPU op. This tests their logic, indices and sums, but not what needs a GPU (launches, races between warps).
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <random>
#include <vector>

struct Index { unsigned x; };
static Index threadIdx, blockIdx, blockDim, gridDim;

namespace fibers {

constexpr size_t stack_bytes = 96 << 10;
enum class At { running, block, warp, done };
struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[stack_bytes]};
  At at = At::done;
};
static std::vector<Fiber> all;
static ucontext_t scheduler;
static unsigned current;
static std::function<void()> body;
static unsigned char slots[1024][16];

static void wait_at(At where) {
  all[current].at = where;
  const unsigned me = current;
  swapcontext(&all[me].context, &scheduler);
  threadIdx.x = me;
}
static void entry() {
  body();
  all[current].at = At::done;
  swapcontext(&all[current].context, &scheduler);
}

// Releases `from`..`to` if each of them waits at `where` or is done.
static void release(unsigned from, unsigned to, At where) {
  for (unsigned i = from; i < to; ++i)
    if (all[i].at != where && all[i].at != At::done) return;
  for (unsigned i = from; i < to; ++i)
    if (all[i].at == where) all[i].at = At::running;
}

static void run_block(unsigned threads) {
  if (all.size() < threads) all.resize(threads);
  for (unsigned i = 0; i < threads; ++i) {
    getcontext(&all[i].context);
    all[i].context.uc_stack.ss_sp = all[i].stack.get();
    all[i].context.uc_stack.ss_size = stack_bytes;
    all[i].context.uc_link = nullptr;
    all[i].at = At::running;
    makecontext(&all[i].context, entry, 0);
  }
  for (bool left = true; left;) {
    left = false;
    bool moved = false;
    for (unsigned i = 0; i < threads; ++i) {
      if (all[i].at != At::running) continue;
      moved = true;
      threadIdx.x = current = i;
      swapcontext(&scheduler, &all[i].context);
    }
    release(0, threads, At::block);
    for (unsigned i = 0; i < threads; i += 32) release(i, i + 32 < threads ? i + 32 : threads, At::warp);
    for (unsigned i = 0; i < threads; ++i) left |= all[i].at != At::done;
    if (left && !moved) {
      std::printf("deadlock: not every thread of a block reaches the same barrier\n");
      std::exit(2);
    }
  }
}

}  // namespace fibers

#define __global__ inline
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
inline void __syncthreads() { fibers::wait_at(fibers::At::block); }
template <typename V>
inline V __shfl_xor_sync(unsigned, V value, int lanes) {
  std::memcpy(fibers::slots[threadIdx.x], &value, sizeof value);
  fibers::wait_at(fibers::At::warp);
  V out;
  std::memcpy(&out, fibers::slots[threadIdx.x ^ unsigned(lanes)], sizeof out);
  fibers::wait_at(fibers::At::warp);
  return out;
}

#include "focal_loss_cuda.h"

namespace {

int failures = 0, problems = 0;

struct Buffers {
  std::unique_ptr<unsigned char[]> logits, grad, other_grad;
  std::unique_ptr<int64_t[]> target;
  std::vector<double> weight, loss_rows, p_rows, other_loss_rows, other_p_rows;
};

// The row of a wrong label is returned as Result::bad_row.
template <typename T>
void emulate(zoo::Problem& p, zoo::Result& result, int64_t blocks) {
  using A = typename T::Real;
  std::vector<zoo::Totals> counts(zoo::most_counts), sums(zoo::most_blocks);
  int64_t wrong = 0;
  zoo::Scratch scratch{counts.data(), sums.data(), &wrong, 0};
  A loss = 0, power = 0;
  const auto launch = [&](auto kernel, int64_t wanted, int threads, int) {
    const int64_t grid = std::max<int64_t>(std::min(wanted, blocks), 1);
    const auto start = [&](int64_t count, int size, auto call) {
      gridDim.x = unsigned(count);
      blockDim.x = unsigned(size);
      for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
        fibers::body = call;
        fibers::run_block(unsigned(size));
      }
    };
    if (grid > 1) {
      scratch.counting = 3;
      start(scratch.counting, zoo::most_counts, [&] { zoo::count_rows(p, scratch); });
    }
    start(grid, threads, [&] { kernel(p, scratch, &loss, &power); });
    if (grid > 1) start(1, 256, [&] { zoo::finish<A>(p, scratch, int(grid), &loss, &power); });
  };
  zoo::choose<T>(p, launch);
  result.loss = p.reduction == zoo::Reduction::none ? 0.0 : double(loss);
  result.factor = double(power);
  result.bad_row = wrong - 1;
}

bool close(double got, double want, double tolerance) {
  return (got != got && want != want) || got == want || std::fabs(got - want) <= tolerance * std::fabs(want) + 1e-30;
}

void expect(bool holds, const char* what, int64_t n, int64_t classes, zoo::Type type, double got, double want) {
  if (!holds && ++failures < 30) std::printf("%s of %ld x %ld, type %d: %.9g, not %.9g\n", what, long(n), long(classes), int(type), got, want);
}

// Logits with -inf in some classes; and then with NaN or +inf in some rows, or with -inf or the lowest number in all classes.
void spoil(unsigned char* logits, zoo::Type type, int64_t rows, int64_t classes, int64_t inner, bool whole_rows, std::mt19937& draw) {
  constexpr double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  const double least = type == zoo::Type::f64 ? std::numeric_limits<double>::lowest() : std::numeric_limits<float>::lowest();
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t start = r / inner * classes * inner + r % inner, one = int64_t(draw() % uint32_t(classes));
    for (int64_t c = 0; c < classes; ++c) {
      const int64_t at = start + c * inner;
      if (draw() % 8 == 0) zoo::write(logits, type, at, -inf);
      if (whole_rows && r % 5 < 2) zoo::write(logits, type, at, r % 5 == 0 ? -inf : least);
      if (whole_rows && r % 5 < 4 && r % 5 > 1 && c == one) zoo::write(logits, type, at, r % 5 == 2 ? nan : inf);
    }
  }
}

template <typename T>
void check(int64_t n, int64_t classes, int64_t inner, double gamma, double smoothing, double spread, zoo::Reduction reduction, int64_t blocks, uint32_t seed, bool shifted) {
  ++problems;
  const zoo::Type type = T::type;
  const size_t item = sizeof(typename T::Stored), count = size_t(n * classes * inner), rows = size_t(n * inner);
  std::mt19937 draw(seed);
  std::uniform_real_distribution<double> uniform(-spread, spread);
  const std::unique_ptr<unsigned char[]> room(new unsigned char[(count + 1) * item + 16]), first(new unsigned char[(count + 1) * item + 16]), second(new unsigned char[count * item]);
  const auto place = [&](unsigned char* from) { return from + (16 - uintptr_t(from) % 16) % 16 + (shifted ? item : 0); };
  unsigned char *logits = place(room.get()), *grad = place(first.get());
  for (size_t i = 0; i < count; ++i) zoo::write(logits, type, int64_t(i), uniform(draw));
  if (seed % 5 > 2) spoil(logits, type, n * inner, classes, inner, seed % 5 == 3, draw);
  std::vector<int64_t> target(rows);
  for (auto& label : target) label = draw() % 6 ? int64_t(draw() % uint32_t(classes)) : -100;
  std::vector<float> weight(static_cast<size_t>(classes));
  std::vector<double> wide(static_cast<size_t>(classes));
  for (size_t c = 0; c < wide.size(); ++c) wide[c] = weight[c] = 0.25f * float(draw() % 7);
  const size_t real = sizeof(typename T::Real);
  std::vector<unsigned char> loss_rows(rows * real), p_rows(rows * real), loss_too(rows * real), p_too(rows * real);
  zoo::Problem p;
  p.logits = logits; p.type = type; p.n = n; p.classes = classes; p.inner = inner;
  p.stride_n = classes * inner; p.stride_c = inner; p.stride_l = 1;
  p.target = target.data(); p.target_n = inner; p.target_l = 1;
  if (seed / 3 % 2) p.weight = type == zoo::Type::f64 ? static_cast<const void*>(wide.data()) : weight.data();
  p.grad = grad; p.grad_n = p.stride_n; p.grad_c = p.stride_c; p.grad_l = 1;
  p.gamma = gamma; p.smoothing = smoothing; p.scale = 2; p.reduction = reduction;
  // every third problem has labels, two labels and their share, or shares of the classes
  std::vector<int64_t> other(rows);
  std::vector<double> wide_share(rows);
  std::vector<float> share(rows);
  for (size_t r = 0; r < rows; ++r) {
    other[r] = draw() % 6 ? int64_t(draw() % uint32_t(classes)) : -100;
    wide_share[r] = share[r] = float(draw() % 5) / 4;
  }
  const std::unique_ptr<unsigned char[]> shares(new unsigned char[count * item]);
  for (size_t i = 0; i < count; ++i) zoo::write(shares.get(), type, int64_t(i), draw() % 4 == 0 || seed % 5 == 3 ? 0.0 : double(draw() % 64) / 64);
  if (seed % 3 == 1) {
    p.other = other.data();
    p.share = type == zoo::Type::f64 ? static_cast<const void*>(wide_share.data()) : share.data();
  } else if (seed % 3 == 2) {
    p.target = nullptr;
    p.shares = shares.get(); p.shares_type = type;
    p.shares_n = p.stride_n; p.shares_c = p.stride_c; p.shares_l = p.stride_l;
  }
  p.p_rows = p_rows.data();
  if (reduction == zoo::Reduction::none) p.loss_rows = loss_rows.data();
  zoo::Result got;
  emulate<T>(p, got, blocks);
  zoo::Problem q = p;
  q.grad = second.get(); q.p_rows = p_too.data();
  if (q.loss_rows != nullptr) q.loss_rows = loss_too.data();
  const zoo::Result want = zoo::focal_loss(q, nullptr);
  const double exact = type == zoo::Type::f64 ? 1e-9 : 1e-5, step = type == zoo::Type::bf16 ? 0.008 : type == zoo::Type::f16 ? 0.001 : exact;
  expect(got.bad_row == -1, "wrong row", n, classes, type, double(got.bad_row), -1);
  expect(close(got.loss, want.loss, exact), "loss", n, classes, type, got.loss, want.loss);
  expect(close(got.factor, want.factor, exact), "factor", n, classes, type, got.factor, want.factor);
  const zoo::Type as = type == zoo::Type::f64 ? zoo::Type::f64 : zoo::Type::f32;
  for (size_t r = 0; r < rows; ++r) {
    expect(close(zoo::read(p_rows.data(), as, int64_t(r)), zoo::read(p_too.data(), as, int64_t(r)), exact), "p", n, classes, type, zoo::read(p_rows.data(), as, int64_t(r)), zoo::read(p_too.data(), as, int64_t(r)));
    if (p.loss_rows != nullptr)
      expect(close(zoo::read(loss_rows.data(), as, int64_t(r)), zoo::read(loss_too.data(), as, int64_t(r)), exact), "row", n, classes, type, zoo::read(loss_rows.data(), as, int64_t(r)), zoo::read(loss_too.data(), as, int64_t(r)));
  }
  double largest = 0;
  for (size_t i = 0; i < count; ++i) largest = std::max(largest, std::fabs(zoo::read(second.get(), type, int64_t(i))));
  // mixed gradients cross zero, and are 0 up to rounding in a row of equal logits
  const double floor = zoo::is_soft(p) ? 4e-6 * largest + 1e-3 * exact : type == zoo::Type::f16 ? 6.1e-8 : 0;
  for (size_t i = 0; i < count; ++i) {
    const double a = zoo::read(grad, type, int64_t(i)), b = zoo::read(second.get(), type, int64_t(i));
    expect(close(a, b, step) || std::fabs(a - b) <= floor, "gradient", n, classes, type, a, b);
  }
  p.grad = logits;  // in place: the same bits over the logits
  emulate<T>(p, got, blocks);
  expect(std::memcmp(logits, grad, count * item) == 0, "gradient in place", n, classes, type, 0, 0);
}

template <typename T>
void sizes() {
  uint32_t seed = 0;
  for (const int64_t classes : {1, 2, 3, 10, 16, 31, 32, 33, 64, 100, 128, 200, 256, 300, 512, 1000, 1024, 1500, 2048, 8200, 9001})
    for (const double gamma : {0.0, 0.5, 2.0})
      for (const double smoothing : {0.0, 0.1})
        for (const int64_t n : {1, 3, 100, 150}) {
          if (n == 100 && (classes <= 32 || classes > 128)) continue;  // more than one row per team in a single block
          if (classes > 100 && n > 3 && gamma != 2.0) continue;
          if (classes > 1500 && (n > 3 || gamma == 0.5)) continue;
          ++seed;
          const int64_t inner = seed % 4 == 3 ? 5 : 1, blocks = seed % 2 ? 1 : 7;
          const double spread = seed % 5 == 4 ? (T::type == zoo::Type::f16 ? 300.0 : 1e4) : 6.0;
          check<T>(inner == 1 ? n : (n + 4) / 5, classes, inner, gamma, smoothing, spread, zoo::Reduction(seed % 4), blocks, seed, seed % 7 == 5);
        }
}

// Labels out of range: that row's loss is NaN, its gradient 0, its number is reported; other rows are unaffected.
void wrong_labels() {
  for (const int64_t classes : {10, 100, 1500}) {
    std::vector<float> logits(size_t(4 * classes), 0.5f), grad(size_t(4 * classes), 7.0f), rows(4);
    const int64_t target[] = {1, classes, 3, int64_t(1) << 40};
    zoo::Problem p;
    p.logits = logits.data(); p.n = 4; p.classes = classes; p.stride_n = classes; p.target = target;
    p.grad = grad.data(); p.grad_n = classes; p.loss_rows = rows.data(); p.reduction = zoo::Reduction::none;
    zoo::Result result;
    emulate<zoo::F32>(p, result, 2);
    expect(result.bad_row == 1 || result.bad_row == 3, "wrong row", 4, classes, p.type, double(result.bad_row), 1);
    for (size_t r = 0; r < 4; ++r) {
      expect((rows[r] != rows[r]) == (r % 2 == 1), "wrong label", 4, classes, p.type, rows[r], 0);
      for (size_t c = 0; c < size_t(classes); ++c) {
        const float value = grad[r * size_t(classes) + c];
        expect(r % 2 == 1 ? value == 0 : value == value && value != 0 && value != 7, "its gradient", 4, classes, p.type, value, 0);
      }
    }
  }
}

}  // namespace

int main() {
  sizes<zoo::F32>();
  sizes<zoo::F64>();
  sizes<zoo::BF16>();
  sizes<zoo::F16>();
  wrong_labels();
  std::printf("CUDA kernels on the CPU: %d problems, %d failures\n", problems, failures);
  return failures != 0;
}
