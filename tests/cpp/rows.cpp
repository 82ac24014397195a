// `rows SET`: the kernel of one instruction set against the row formula in long double, on buffers without a spare byte, so
// that a sanitizer detects accesses beyond them. Exit status 77 if this CPU lacks the instruction set.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <vector>

#include "focal_loss.h"

static long allocations = 0;
void* operator new(std::size_t size) {
  ++allocations;
  if (void* room = std::malloc(size)) return room;
  std::abort();
}
void operator delete(void* room) noexcept { std::free(room); }
void operator delete(void* room, std::size_t) noexcept { std::free(room); }

namespace {

int failures = 0;

#define EXPECT(holds, ...)                    \
  do {                                        \
    if (!(holds) && ++failures < 20) {        \
      std::printf("line %d: ", __LINE__);     \
      std::printf(__VA_ARGS__);               \
      std::printf("\n");                      \
    }                                         \
  } while (0)

struct True {
  long double loss;
  std::vector<long double> grad;
};

// -w (1 - p)^gamma log p of one row, and its gradient; 1 - p from the other classes.
True truth(const float* z, int64_t classes, int64_t label, long double gamma, long double weight) {
  long double top = z[0], others = 0;
  for (int64_t c = 0; c < classes; ++c) top = std::fmax(top, (long double)z[c]);
  for (int64_t c = 0; c < classes; ++c)
    if (c != label) others += std::exp((long double)z[c] - top);
  const long double e = std::exp((long double)z[label] - top), total = e + others, p = e / total, q = others / total;
  const long double log_p = others < e ? -std::log1p(others / e) : (long double)z[label] - top - std::log(total);
  const long double power = gamma == 0 ? 1 : std::pow(q, gamma);
  const long double g = weight * power * (1 - gamma * (p == 0 ? 0 : p * (q == 0 ? -1 : log_p / q)));
  True out{-weight * power * log_p, {}};
  for (int64_t c = 0; c < classes; ++c) out.grad.push_back(c == label ? -g * q : g * std::exp((long double)z[c] - top) / total);
  return out;
}

bool close(long double got, long double want) { return std::fabs(got - want) <= 1e-5L * std::fabs(want) + 1e-30L; }

// The formulas shared by the CPU and CUDA kernels: a label at `shift` below the largest logit, given the others' sum.
template <typename T>
void formulas(const char* type, long double tolerance) {
  for (const double gamma : {0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0})
    for (const double below : {0.0, 1e-3, 1.0, 10.0, 30.0, 80.0, 1e4})
      for (const double sum : {0.0, 1e-30, 1e-12, 1e-6, 0.3, 1.0, 5.0, 1e6}) {
        if (below > 0 && sum < 1) continue;  // the maximum is then among the others
        const T shift = T(-below), others = T(sum);
        const zoo::Terms<T> got = zoo::terms(shift, T(std::exp(shift)), others, T(gamma));
        const long double e = std::exp((long double)shift), total = e + others, p = e / total, q = (long double)others / total;
        const long double log_p = others < e ? -std::log1p(others / e) : (long double)shift - std::log(total);
        const long double power = gamma == 0 ? 1 : std::pow(q, (long double)gamma);
        const long double slope = power * (1 - gamma * (p == 0 ? 0 : p * (q == 0 ? -1 : log_p / q)));
        const long double want[] = {-log_p * power, power, p, q, slope};
        const T found[] = {got.loss, got.power, got.p, got.q, got.slope};
        for (int i = 0; i < 5; ++i)
          EXPECT(want[i] < 1e-30L || std::fabs(found[i] - want[i]) <= tolerance * want[i], "%s: field %d of terms(%g, %g, gamma %g) is %.9g, not %.9Lg", type, i,
                 -below, sum, gamma, double(found[i]), want[i]);
      }
}

void check(int64_t n, int64_t classes, double gamma, float spread, bool weighted, uint32_t seed) {
  std::mt19937 draw(seed);
  std::uniform_real_distribution<float> uniform(-spread, spread);
  // new T[n] and no vector: nothing is allocated beyond the last element
  const std::unique_ptr<float[]> logits(new float[size_t(n * classes)]), grad(new float[size_t(n * classes)]), p(new float[size_t(n)]), weight(new float[size_t(classes)]);
  const std::unique_ptr<int64_t[]> target(new int64_t[size_t(n)]);
  for (int64_t i = 0; i < n * classes; ++i) logits[size_t(i)] = uniform(draw), grad[size_t(i)] = 7;
  for (int64_t c = 0; c < classes; ++c) weight[size_t(c)] = weighted ? 0.5f + float(c % 3) : 1.0f;
  int64_t count = 0;
  for (int64_t r = 0; r < n; ++r) count += (target[size_t(r)] = draw() % 5 ? int64_t(draw() % uint32_t(classes)) : -100) >= 0;
  zoo::Problem problem;
  problem.logits = logits.get(); problem.n = n; problem.classes = classes; problem.stride_n = classes;
  problem.target = target.get(); problem.weight = weighted ? weight.get() : nullptr; problem.gamma = gamma;
  problem.grad = grad.get(); problem.grad_n = classes; problem.p_rows = p.get(); problem.scale = 3;
  const long before = allocations;
  const zoo::Result result = zoo::focal_loss(problem, nullptr);
  EXPECT(allocations == before, "%ld allocations in one call", allocations - before);
  long double loss = 0;
  const long double factor = count ? 3.0L / count : 0;
  for (int64_t r = 0; r < n; ++r) {
    const int64_t label = target[size_t(r)];
    const float* row = grad.get() + r * classes;
    if (label < 0) {
      for (int64_t c = 0; c < classes; ++c) EXPECT(row[c] == 0, "ignored row %ld class %ld has gradient %g", long(r), long(c), row[c]);
      EXPECT(p[size_t(r)] == 1, "ignored row %ld has p %g", long(r), p[size_t(r)]);
      continue;
    }
    const True want = truth(logits.get() + r * classes, classes, label, gamma, weighted ? weight[size_t(label)] : 1);
    loss += want.loss * factor;
    for (int64_t c = 0; c < classes; ++c)
      EXPECT(close(row[c], want.grad[size_t(c)] * factor), "%ld x %ld, gamma %g, spread %g: grad[%ld, %ld] = %g, not %Lg", long(n), long(classes), gamma, spread,
             long(r), long(c), row[c], want.grad[size_t(c)] * factor);
  }
  EXPECT(std::fabs(result.loss - loss) <= 1e-5L * std::fabs(loss) + 1e-30L, "%ld x %ld: loss %g, not %Lg", long(n), long(classes), result.loss, loss);
  const std::unique_ptr<float[]> same(new float[size_t(n * classes)]);
  std::memcpy(same.get(), logits.get(), size_t(n * classes) * 4);
  problem.logits = problem.grad = same.get();
  zoo::focal_loss(problem, nullptr);
  for (int64_t i = 0; i < n * classes; ++i)
    EXPECT(close(same[size_t(i)], grad[size_t(i)]), "%ld x %ld, gamma %g, spread %g: in place grad[%ld] = %g, not %g", long(n), long(classes), gamma, spread, long(i),
           same[size_t(i)], grad[size_t(i)]);
  problem.logits = logits.get(), problem.grad = grad.get();
  if (n > 1) {  // a bad label is found before anything is written
    target[size_t(n - 1)] = classes;
    std::memset(grad.get(), 0, size_t(n * classes) * 4);
    const zoo::Result bad = zoo::focal_loss(problem, nullptr);
    EXPECT(bad.bad_row == n - 1 && bad.bad_label == classes, "bad row %ld, label %ld", long(bad.bad_row), long(bad.bad_label));
    for (int64_t i = 0; i < n * classes; ++i) EXPECT(grad[size_t(i)] == 0, "written in spite of a bad label");
  }
}

// Several classes with a share: shares in memory, two labels, label smoothing; long rows are processed in parts.
void check_mixed(int64_t n, int64_t classes, double gamma, float spread, int kind, uint32_t seed) {
  std::mt19937 draw(seed);
  std::uniform_real_distribution<float> uniform(-spread, spread);
  const std::unique_ptr<float[]> logits(new float[size_t(n * classes)]), grad(new float[size_t(n * classes)]), shares(new float[size_t(n * classes)]), share(new float[size_t(n)]);
  const std::unique_ptr<int64_t[]> target(new int64_t[size_t(n)]), other(new int64_t[size_t(n)]);
  for (int64_t i = 0; i < n * classes; ++i) logits[size_t(i)] = uniform(draw), shares[size_t(i)] = draw() % 3 ? 0 : float(draw() % 64) / 64;
  for (int64_t r = 0; r < n; ++r) target[size_t(r)] = int64_t(draw() % uint32_t(classes)), other[size_t(r)] = int64_t(draw() % uint32_t(classes)), share[size_t(r)] = float(draw() % 5) / 4;
  zoo::Problem problem;
  problem.logits = logits.get(); problem.n = n; problem.classes = classes; problem.stride_n = classes; problem.gamma = gamma;
  problem.grad = grad.get(); problem.grad_n = classes; problem.reduction = zoo::Reduction::sum;
  problem.smoothing = kind == 2 || seed % 2 ? 0.125 : 0;
  if (kind == 0) problem.shares = shares.get(), problem.shares_n = classes;
  else problem.target = target.get();
  if (kind == 1) problem.other = other.get(), problem.share = share.get();
  const long before = allocations;
  const zoo::Result result = zoo::focal_loss(problem, nullptr);
  EXPECT(allocations == before, "%ld allocations in one call", allocations - before);
  long double loss = 0;
  for (int64_t r = 0; r < n; ++r) {
    std::vector<long double> want(static_cast<size_t>(classes), 0);
    long double largest = 0;
    for (int64_t c = 0; c < classes; ++c) {
      long double q = kind == 0 ? shares[size_t(r * classes + c)] : kind == 1 ? 0 : c == target[size_t(r)];
      if (kind == 1) q += (c == target[size_t(r)] ? share[size_t(r)] : 0) + (c == other[size_t(r)] ? 1 - share[size_t(r)] : 0);
      q = q * (1 - problem.smoothing) + problem.smoothing / (long double)classes;
      if (q == 0) continue;
      const True one = truth(logits.get() + r * classes, classes, c, gamma, 1);
      loss += q * one.loss;
      for (int64_t j = 0; j < classes; ++j) want[size_t(j)] += q * one.grad[size_t(j)];
    }
    for (const long double each : want) largest = std::max(largest, std::fabs(each));
    for (int64_t c = 0; c < classes; ++c)
      EXPECT(std::fabs(grad[size_t(r * classes + c)] - want[size_t(c)]) <= 2e-5L * std::fabs(want[size_t(c)]) + 1e-6L * largest + 1e-30L, "mixed %d of %ld x %ld, gamma %g, spread %g: grad[%ld, %ld] = %g, not %Lg",
             kind, long(n), long(classes), gamma, spread, long(r), long(c), grad[size_t(r * classes + c)], want[size_t(c)]);
  }
  EXPECT(std::fabs(result.loss - loss) <= 1e-5L * std::fabs(loss) + 1e-30L, "mixed %d of %ld x %ld, gamma %g, spread %g: loss %g, not %Lg", kind, long(n), long(classes), gamma, spread, result.loss, loss);
  problem.grad = logits.get();
  zoo::focal_loss(problem, nullptr);
  EXPECT(std::memcmp(logits.get(), grad.get(), size_t(n * classes) * 4) == 0, "mixed %d of %ld x %ld: another gradient in place", kind, long(n), long(classes));
}

// Classes masked by -inf, whose share or weight is 0: the bits of a finite logit whose p rounds to 0, in the vector code too.
void check_masked(int64_t n, int64_t classes, double gamma, int kind, uint32_t seed) {
  std::mt19937 draw(seed);
  std::uniform_real_distribution<float> uniform(-3, 3);
  const size_t count = size_t(n * classes);
  std::vector<float> finite(count), masked(count), shares(count), share(size_t(n), 0.25f), weight(size_t(classes), 1.5f);
  std::vector<int64_t> target(size_t(n), 0), other(size_t(n), classes - 1);
  for (size_t i = 0; i < count; ++i) {
    const int64_t c = int64_t(i) % classes;
    const bool out = c != 0 && c != classes - 1 && (kind == 3 ? c % 5 == 2 : draw() % 8 == 0);
    finite[i] = out ? -1000.0f : uniform(draw);
    masked[i] = out ? -std::numeric_limits<float>::infinity() : finite[i];
    shares[i] = out ? 0 : float(draw() % 64) / 64;
    if (kind == 3) weight[size_t(c)] = c % 5 == 2 ? 0 : 1.5f;
  }
  zoo::Problem problem;
  problem.n = n; problem.classes = classes; problem.stride_n = problem.grad_n = problem.shares_n = classes; problem.gamma = gamma;
  problem.target = target.data();
  if (kind == 0) problem.shares = shares.data();
  if (kind == 1) problem.other = other.data(), problem.share = share.data();
  if (kind == 3) problem.weight = weight.data(), problem.smoothing = 0.1;
  std::vector<float> grads[2], p[2];
  double losses[2];
  for (const int i : {0, 1}) {
    grads[i].resize(count), p[i].resize(size_t(n));
    problem.logits = i == 0 ? finite.data() : masked.data(), problem.grad = grads[i].data(), problem.p_rows = p[i].data();
    losses[i] = zoo::focal_loss(problem, nullptr).loss;
  }
  EXPECT(losses[0] == losses[1] && std::isfinite(losses[0]), "masked %d of %ld x %ld, gamma %g: loss %.12g, not %.12g", kind, long(n), long(classes), gamma, losses[1], losses[0]);
  EXPECT(p[0] == p[1], "masked %d of %ld x %ld, gamma %g: another p", kind, long(n), long(classes), gamma);
  EXPECT(grads[0] == grads[1], "masked %d of %ld x %ld, gamma %g: another gradient", kind, long(n), long(classes), gamma);
}

// A row without a softmax is NaN whatever its weight and shares; its neighbours are unaffected.
void check_broken(int64_t classes, double gamma, int kind, bool weighted) {
  constexpr float inf = std::numeric_limits<float>::infinity(), nan = std::numeric_limits<float>::quiet_NaN();
  const size_t C = size_t(classes);
  std::vector<float> logits(5 * C, 0.5f), grad(5 * C), rows(5), p(5), shares(5 * C, 0), share(5, 1), weight(C, 0);
  std::fill(logits.begin() + long(C), logits.begin() + 2 * long(C), -inf);
  logits[2 * C + C / 2] = nan, logits[3 * C + C - 1] = inf;
  const int64_t target[] = {0, 0, 0, 0, 0};
  zoo::Problem problem;
  problem.logits = logits.data(); problem.n = 5; problem.classes = classes; problem.stride_n = problem.grad_n = problem.shares_n = classes;
  problem.target = target; problem.weight = weighted ? weight.data() : nullptr; problem.gamma = gamma; problem.reduction = zoo::Reduction::none;
  problem.grad = grad.data(); problem.loss_rows = rows.data(); problem.p_rows = p.data();
  if (kind == 0) problem.shares = shares.data();
  if (kind == 1) problem.other = target, problem.share = share.data();
  if (kind == 3) problem.smoothing = 0.1;
  zoo::focal_loss(problem, nullptr);
  for (size_t r = 0; r < 5; ++r) {
    const bool broken = r == 1 || r == 2 || r == 3;
    EXPECT(std::isnan(rows[r]) == broken && std::isnan(p[r]) == broken, "kind %d of %ld classes, gamma %g: row %ld has loss %g and p %g", kind, long(classes), gamma, long(r), rows[r], p[r]);
    for (size_t c = 0; c < C; ++c)
      EXPECT(std::isnan(grad[r * C + c]) == broken, "kind %d of %ld classes, gamma %g: grad[%ld, %ld] = %g", kind, long(classes), gamma, long(r), long(c), grad[r * C + c]);
  }
}

}  // namespace

int main(int count, char** words) {
  const char* set = count > 1 ? words[1] : "default";
  if (!zoo::set_capability(set)) {
    std::printf("no %s here\n", set);
    return 77;
  }
  formulas<float>("float", 3e-6L);
  formulas<double>("double", 1e-14L);
  uint32_t seed = 0;
  for (const int64_t classes : {1, 2, 3, 7, 8, 10, 15, 16, 17, 31, 32, 33, 100, 257, 1000, 1024, 1500})
    for (const double gamma : {0.0, 0.5, 1.0, 2.0, 3.3})
      for (const float spread : {3.0f, 29.0f, 44.0f, 80.0f, 1e4f, 1.2e4f})
        for (const int64_t n : {1, 5, 16, 67}) check(n, classes, gamma, spread, seed % 2 == 0, seed), ++seed;
  for (const int64_t classes : {1, 2, 10, 16, 17, 100, 257})
    for (const double gamma : {0.0, 0.5, 2.0, 3.3})
      for (const float spread : {3.0f, 60.0f, 3e4f})
        for (const int kind : {0, 1, 2}) check_mixed(5, classes, gamma, spread, kind, seed), ++seed;
  for (const int kind : {0, 1, 2}) check_mixed(1, 5000, 2.0, 3.0f, kind, seed), ++seed;
  for (const int kind : {0, 1, 2, 3})
    for (const double gamma : {0.0, 0.5, 2.0})
      for (const int64_t classes : {2, 3, 10, 16, 17, 100, 1000, 1500, 5000}) {
        check_masked(9, classes, gamma, kind, seed), ++seed;
        for (const bool weighted : {false, true}) check_broken(classes, gamma, kind, weighted);
      }
  std::printf("%s: %u problems, %d failures\n", set, seed, failures);
  return failures != 0;
}
