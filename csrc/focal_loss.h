// The formulas for one row of the focal loss, shared by CPU and CUDA, without torch.
//
// l = -w_y (1 - p_t)^gamma log p_t (Lin et al. 2017, eq. 4). Everything is computed from two sums over exp(z_j - m), m the
// largest logit: e_t of the label and `others` of the rest. 1 - p_t = others / (e_t + others) is accurate where subtracting
// p_t from 1 would leave rounding noise, and log p_t = -log1p(others / e_t) is accurate where log(p_t) is not.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#if defined(__CUDACC__)
#define ZOO_HD __host__ __device__ inline
#else
#define ZOO_HD inline
#endif

namespace zoo {

template <typename T>
struct Terms {
  T loss;    // -(1 - p)^gamma log p, unweighted
  T power;   // (1 - p)^gamma
  T p;       // p_t
  T q;       // 1 - p_t
  T slope;   // g = (1 - p)^gamma (1 - gamma p log p / (1 - p)); d loss / d z_j = g p_j, and -g q for the label
};

// (q, log p) of a class from e = exp(z - m) and the other classes' sum; shift = z - m replaces e if e is so small that
// others / e overflows, or e is a denormal with fewer digits.
template <typename T>
ZOO_HD T log_probability(T shift, T e, T others) {
  // Beyond 1e6 the quotient adds less than a rounding error to log(others) - shift.
  return others < e * T(1e6) ? -std::log1p(others / e) : shift - std::log(others + e);
}

// q^gamma (1 - gamma p log p / q). The limit of log p / q is -1 at p = 1, so gamma < 1 causes no infinity times zero;
// the limit of p log p at p = 0 is 0.
template <typename T>
ZOO_HD T slope_of(T power, T gamma, T p, T q, T log_p) {
  const T ratio = q == T(0) ? T(-1) : log_p / q;
  return power * (T(1) - gamma * (p == T(0) ? T(0) : p * ratio));
}

template <typename T>
ZOO_HD T power_of(T q, T gamma) {
  return gamma == T(0) ? (q == q ? T(1) : q) : gamma == T(1) ? q : gamma == T(2) ? q * q : std::pow(q, gamma);
}

// Values of a row with one label. NaN or +inf logits, or all -inf, make e or others, and thus every field, NaN.
template <typename T>
ZOO_HD Terms<T> terms(T shift, T e, T others, T gamma) {
  Terms<T> out;
  const T total = e + others;
  out.p = e / total;
  out.q = others / total;
  const T log_p = log_probability(shift, e, others);
  out.power = power_of(out.q, gamma);
  out.loss = -log_p * out.power;
  out.slope = slope_of(out.power, gamma, out.p, out.q, log_p);
  return out;
}

enum class Type : int { f32, f64, bf16, f16 };
enum class Label : int { i64, i32, u8 };
enum class Reduction : int { none, mean, sum, weighted_mean };

// One call. Row (n, l) of n x inner rows has logits[n * stride_n + c * stride_c + l * stride_l]; the gradient likewise.
// Strides in elements. Rows are numbered n * inner + l; `loss_rows` and `p_rows` are dense in that order.
struct Problem {
  const void* logits = nullptr;
  Type type = Type::f32;
  int64_t n = 0, classes = 0, inner = 1;
  int64_t stride_n = 0, stride_c = 1, stride_l = 0;
  const void* target = nullptr;
  Label label = Label::i64;
  int64_t target_n = 1, target_l = 0;
  const void* other = nullptr;    // second labels, of the first ones' type, in the order of rows; null: one label per row
  const void* share = nullptr;    // share of the first label, float or double like `weight`, in the order of rows
  const void* shares = nullptr;   // shares of the classes instead of labels: strides below; double for f64 logits, else float or the logits' type
  Type shares_type = Type::f32;
  int64_t shares_n = 0, shares_c = 1, shares_l = 0;
  const void* weight = nullptr;   // float, or double for f64 logits; dense
  void* grad = nullptr;           // same type as logits; null: not needed. May be the logits' memory, with their strides
  int64_t grad_n = 0, grad_c = 1, grad_l = 0;
  void* loss_rows = nullptr;      // float or double; required for Reduction::none
  void* p_rows = nullptr;         // float or double; null: not needed
  double gamma = 2, smoothing = 0, scale = 1;
  int64_t ignore_index = -100;
  Reduction reduction = Reduction::mean;
};

struct Result {
  double loss = 0;      // reduced and scaled; 0 for Reduction::none
  double factor = 0;    // mean over the rows that are not ignored of (1 - p)^gamma, weighted by the row's shares
  int64_t bad_row = -1; // first row with a label out of range, or -1; nothing has been written then
  int64_t bad_label = 0;
};

// Calls body(begin, end, context) for parts of [0, n), or once for all of it.
using Parallel = void (*)(int64_t n, void (*body)(int64_t, int64_t, void*), void* context);

// The CPU op (focal_loss_cpu.cpp). `parallel` null: one thread. Same bits for any number of threads.
Result focal_loss(const Problem& problem, Parallel parallel);

// "default", "avx2" or "avx512": the best that this CPU supports, unless limited by ZOO_CPU_CAPABILITY.
const char* capability();
// Selects one by name; false if this CPU or compiler lacks it.
bool set_capability(const char* name);

}  // namespace zoo
