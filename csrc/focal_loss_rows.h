// Reads and writes single rows of any type and strides, and computes the loss of one row in double: slow, valid for any
// input, and the fallback of the vector code (float64, label smoothing, infinite or huge logits).
#pragma once

#include <cstring>

#include "focal_loss.h"

namespace zoo {
namespace {

struct Call {
  Problem problem;
  int64_t rows;
  double factor;  // scale over the number (or weight) of rows: multiplies loss and gradient
};

struct Sums {
  double count, weight;  // rows that are not ignored, and their weights
  int64_t bad_row, bad_label;
  double loss, power;    // sums over rows, before Call::factor
};

ZOO_HD float from_half(uint16_t bits, bool brain) {
  uint32_t out;
  if (brain) {
    out = uint32_t(bits) << 16;
  } else {
    const uint32_t sign = uint32_t(bits & 0x8000) << 16, exponent = (bits >> 10) & 31, mantissa = bits & 1023;
    if (exponent == 0) {  // zero or subnormal: mantissa 2^-24
      const float value = float(mantissa) * 5.9604644775390625e-8f;
      return sign ? -value : value;
    }
    out = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | mantissa << 13;
  }
  float value;
  std::memcpy(&value, &out, 4);
  return value;
}

// Round to nearest, ties to even, as PyTorch does.
ZOO_HD uint16_t to_half(float value, bool brain) {
  uint32_t in;
  std::memcpy(&in, &value, 4);
  const uint32_t sign = in >> 16 & 0x8000;
  const uint32_t magnitude = in & 0x7fffffff;
  if (brain) {
    if (magnitude > 0x7f800000) return uint16_t(in >> 16 | 0x40);
    return uint16_t((in + 0x7fff + (in >> 16 & 1)) >> 16);
  }
  if (magnitude > 0x7f800000) return uint16_t(sign | 0x7e00);
  if (magnitude >= 0x47800000) return uint16_t(sign | 0x7c00);
  if (magnitude < 0x38800000) {  // subnormal: adding 0.5 leaves the bits of 2^-24 at the low end, rounded
    float shifted;
    std::memcpy(&shifted, &magnitude, 4);
    shifted += 0.5f;
    uint32_t bits;
    std::memcpy(&bits, &shifted, 4);
    return uint16_t(sign | (bits - 0x3f000000));
  }
  return uint16_t(sign | (magnitude + 0xc8000fff + (magnitude >> 13 & 1)) >> 13);
}

ZOO_HD double read(const void* data, Type type, int64_t at) {
  switch (type) {
    case Type::f32: return static_cast<const float*>(data)[at];
    case Type::f64: return static_cast<const double*>(data)[at];
    default: return from_half(static_cast<const uint16_t*>(data)[at], type == Type::bf16);
  }
}

ZOO_HD void write(void* data, Type type, int64_t at, double value) {
  switch (type) {
    case Type::f32: static_cast<float*>(data)[at] = float(value); break;
    case Type::f64: static_cast<double*>(data)[at] = value; break;
    default: static_cast<uint16_t*>(data)[at] = to_half(float(value), type == Type::bf16);
  }
}

ZOO_HD int64_t read_label(const void* labels, Label type, int64_t at) {
  switch (type) {
    case Label::i64: return static_cast<const int64_t*>(labels)[at];
    case Label::i32: return static_cast<const int32_t*>(labels)[at];
    default: return static_cast<const uint8_t*>(labels)[at];
  }
}

ZOO_HD int64_t label_at(const Problem& p, int64_t row) {
  return read_label(p.target, p.label, p.inner == 1 ? row * p.target_n : row / p.inner * p.target_n + row % p.inner * p.target_l);
}

ZOO_HD double weight_of(const Problem& p, int64_t label) {
  return p.weight == nullptr ? 1.0 : read(p.weight, p.type == Type::f64 ? Type::f64 : Type::f32, label);
}

ZOO_HD int64_t row_start(const Problem& p, int64_t row) {
  return p.inner == 1 ? row * p.stride_n : row / p.inner * p.stride_n + row % p.inner * p.stride_l;
}

ZOO_HD int64_t grad_start(const Problem& p, int64_t row) {
  return p.inner == 1 ? row * p.grad_n : row / p.inner * p.grad_n + row % p.inner * p.grad_l;
}

ZOO_HD void write_row(void* data, const Problem& p, int64_t row, double value) {
  if (data != nullptr) write(data, p.type == Type::f64 ? Type::f64 : Type::f32, row, value);
}

// The target of a row: shares q_c of the classes, before label smoothing. One label has the share 1, two have `share` and
// 1 - share, or the shares of all classes are in memory.
struct Goal {
  int64_t label = -1, other = -1;  // other == label if there is one label; both are -1 for shares in memory
  bool ignored = false, wrong = false;
  double share = 1;      // of `label`
  int64_t start = 0;     // of the row's shares

  ZOO_HD Goal(const Problem& p, int64_t row) {
    if (p.shares != nullptr) {
      start = p.inner == 1 ? row * p.shares_n : row / p.inner * p.shares_n + row % p.inner * p.shares_l;
      return;
    }
    label = other = label_at(p, row);
    if (p.other != nullptr) {
      other = read_label(p.other, p.label, row);
      share = read(p.share, p.type == Type::f64 ? Type::f64 : Type::f32, row);
    }
    ignored = label == p.ignore_index || other == p.ignore_index;
    wrong = !ignored && (uint64_t(label) >= uint64_t(p.classes) || uint64_t(other) >= uint64_t(p.classes));
  }
  ZOO_HD bool plain() const { return !ignored && !wrong; }
  // q_c
  ZOO_HD double of(const Problem& p, int64_t c) const {
    if (p.shares != nullptr) return read(p.shares, p.shares_type, start + c * p.shares_c);
    if (label == other) return c == label ? 1.0 : 0.0;
    return c == label ? share : c == other ? 1 - share : 0.0;
  }
  // w_c times q_c after smoothing
  ZOO_HD double amount(const Problem& p, int64_t c) const {
    const double q = of(p, c);
    return weight_of(p, c) * (p.smoothing == 0 ? q : q * (1 - p.smoothing) + p.smoothing / double(p.classes));
  }
};

// Whether a row may have more than one class with a share.
ZOO_HD bool is_soft(const Problem& p) { return p.smoothing > 0 || p.other != nullptr || p.shares != nullptr; }

// Counts rows and weights of a block, and finds its first label out of range. Rows without a single label have no weight:
// each counts as 1.
inline void scan(const Call& call, int64_t begin, int64_t end, Sums& sums) {
  const Problem& p = call.problem;
  sums = Sums{0, 0, -1, 0, 0, 0};
  for (int64_t row = begin; row < end; ++row) {
    const Goal goal(p, row);
    if (goal.ignored) continue;
    if (goal.wrong) {
      sums.bad_row = row;
      sums.bad_label = uint64_t(goal.label) >= uint64_t(p.classes) ? goal.label : goal.other;
      return;
    }
    sums.count += 1;
    sums.weight += p.other != nullptr || p.shares != nullptr ? 1.0 : weight_of(p, goal.label);
  }
}

struct Found {
  double shift, below;  // largest logit; sum of exp(z - shift) over all classes but one with the largest logit
  int64_t top;
};

inline Found find(const Problem& p, int64_t start) {
  Found found{read(p.logits, p.type, start), 0, 0};
  for (int64_t c = 1; c < p.classes; ++c) {
    const double z = read(p.logits, p.type, start + c * p.stride_c);
    if (z > found.shift || found.shift != found.shift) found = {z, 0, c};
  }
  for (int64_t c = 0; c < p.classes; ++c)
    if (c != found.top) found.below += std::exp(read(p.logits, p.type, start + c * p.stride_c) - found.shift);
  found.below += found.shift - found.shift;  // NaN for an infinite or NaN maximum
  return found;
}

// One row in double. Each class with an amount a_c = w_c q_c has its own modulating factor (Mukhoti et al. 2020):
// l = -sum_c a_c (1 - p_c)^gamma log p_c, and with g_c = a_c slope_c
// d l / d z_j = p_j sum_{c != j} g_c - g_j (1 - p_j).
inline void exact_row(const Call& call, int64_t row, Sums& sums) {
  const Problem& p = call.problem;
  const Goal goal(p, row);
  const int64_t start = row_start(p, row), out = grad_start(p, row);
  if (goal.ignored) {
    write_row(p.loss_rows, p, row, 0);
    write_row(p.p_rows, p, row, 1);
    if (p.grad != nullptr)
      for (int64_t c = 0; c < p.classes; ++c) write(p.grad, p.type, out + c * p.grad_c, 0);
    return;
  }
  const Found found = find(p, start);
  const auto one = [&](int64_t c) {
    const double shift = read(p.logits, p.type, start + c * p.stride_c) - found.shift, e = std::exp(shift);
    return terms(shift, e, c == found.top ? found.below : 1.0 - e + found.below, p.gamma);
  };
  const bool soft = is_soft(p);
  const double zero = 0 * found.below;  // NaN for a row without a softmax, which no weight or share of 0 hides
  double loss = zero, all = zero, power = zero, prob = zero, mine_q = zero;
  const auto add = [&](int64_t c) {
    const double a = goal.amount(p, c), q = goal.of(p, c);
    if (a == 0 && q == 0) return;
    const Terms<double> each = one(c);
    loss += a == 0 ? 0 : a * each.loss;
    all += a == 0 ? 0 : a * each.slope;
    power += q * each.power;
    prob += q * each.p;
    mine_q = each.q;
  };
  if (soft)
    for (int64_t c = 0; c < p.classes; ++c) add(c);
  else
    add(goal.label);
  sums.loss += loss;
  sums.power += power;
  write_row(p.loss_rows, p, row, loss * call.factor);
  write_row(p.p_rows, p, row, prob);
  if (p.grad == nullptr) return;
  for (int64_t c = 0; c < p.classes; ++c) {
    double slope;
    if (c == goal.label && !soft) {
      slope = -all * mine_q;
    } else if (!soft) {
      slope = all * std::exp(read(p.logits, p.type, start + c * p.stride_c) - found.shift) / (1 + found.below);
    } else {
      const Terms<double> each = one(c);
      const double a = goal.amount(p, c), g = a == 0 ? 0 : a * each.slope;
      slope = each.p * (all - g) - g * each.q;
    }
    write(p.grad, p.type, out + c * p.grad_c, slope * call.factor);
  }
}

}  // namespace
}  // namespace zoo
