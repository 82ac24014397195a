// From torch's tensors (LibTorch's stable ABI) to a Problem: checks, pointers, strides and outputs, for both CPU and CUDA.
#pragma once

#include <optional>
#include <tuple>

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "focal_loss.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool is_float(const Tensor& tensor) {
  const auto type = tensor.scalar_type();
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 || type == ScalarType::Half;
}

inline zoo::Type type_of(const Tensor& logits) {
  switch (logits.scalar_type()) {
    case ScalarType::Float: return zoo::Type::f32;
    case ScalarType::Double: return zoo::Type::f64;
    case ScalarType::BFloat16: return zoo::Type::bf16;
    case ScalarType::Half: return zoo::Type::f16;
    default: STD_TORCH_CHECK(false, "zoo::focal_loss: logits must be float32, float64, bfloat16 or float16");
  }
}

inline zoo::Label label_of(const Tensor& target) {
  switch (target.scalar_type()) {
    case ScalarType::Long: return zoo::Label::i64;
    case ScalarType::Int: return zoo::Label::i32;
    case ScalarType::Byte: return zoo::Label::u8;
    default: STD_TORCH_CHECK(false, "zoo::focal_loss: target must be int64, int32 or uint8");
  }
}

inline bool together(const Tensor& a, const Tensor& b) {
  return a.is_cpu() == b.is_cpu() && (a.is_cpu() || a.get_device_index() == b.get_device_index());
}

// Labels of each row, or shares of each row's classes.
inline void check_target(const Tensor& logits, const Tensor& target, ScalarType accurate) {
  const int64_t dim = logits.dim();
  STD_TORCH_CHECK(together(target, logits), "zoo::focal_loss: target must be on the device of the logits");
  if (is_float(target)) {
    bool same = target.dim() == dim;
    for (int64_t d = 0; same && d < dim; ++d) same = target.size(d) == logits.size(d);
    STD_TORCH_CHECK(same, "zoo::focal_loss: target must have the shape of the logits if it is of shares");
    STD_TORCH_CHECK(target.scalar_type() == logits.scalar_type() || (accurate == ScalarType::Float && target.scalar_type() == accurate),
                    "zoo::focal_loss: shares must be of the logits' type, or float32 for half-precision logits");
  } else {
    STD_TORCH_CHECK(target.dim() == dim - 1 && target.size(0) == logits.size(0) && (dim == 2 || target.size(1) == logits.size(2)),
                    "zoo::focal_loss: target must be (N,) or (N, L), or shares of the logits' shape");
  }
}

// Second labels and the share of the first: both or neither, dense.
inline void check_pair(const Tensor& target, const std::optional<Tensor>& other, const std::optional<Tensor>& share, ScalarType accurate) {
  STD_TORCH_CHECK(other.has_value() == share.has_value(), "zoo::focal_loss: other and share belong together");
  if (!other.has_value()) return;
  STD_TORCH_CHECK(!is_float(target) && other->scalar_type() == target.scalar_type() && share->scalar_type() == accurate,
                  "zoo::focal_loss: other must be of the target's type, and share float32 (float64 for float64 logits)");
  for (const Tensor* each : {&*other, &*share})
    STD_TORCH_CHECK(together(*each, target) && each->numel() == target.numel() && each->is_contiguous(),
                    "zoo::focal_loss: other and share must be contiguous, of the target's size and on its device");
}

// A tensor whose storage was freed (FSDP, offloading) has elements but no memory.
inline void check_memory(const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.numel() == 0 || tensor.const_data_ptr() != nullptr, "zoo::focal_loss: a tensor has elements, but its storage was freed");
}

inline void check(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight, ScalarType accurate) {
  const int64_t dim = logits.dim();
  STD_TORCH_CHECK(dim == 2 || dim == 3, "zoo::focal_loss: logits must be (N, C) or (N, C, L)");
  STD_TORCH_CHECK(logits.size(1) > 0, "zoo::focal_loss: logits must have at least one class");
  check_target(logits, target, accurate);
  check_memory(logits);
  check_memory(target);
  if (weight.has_value())
    STD_TORCH_CHECK(together(*weight, logits) && weight->dim() == 1 && weight->size(0) == logits.size(1) &&
                        weight->scalar_type() == accurate && weight->is_contiguous(),
                    "zoo::focal_loss: weight must be (C,), contiguous, float32 (float64 for float64 logits) and on the device of the logits");
}

inline zoo::Problem problem_of(const Tensor& logits, const Tensor& target) {
  zoo::Problem p;
  const bool deep = logits.dim() == 3;
  p.logits = logits.const_data_ptr();
  p.type = type_of(logits);
  p.n = logits.size(0);
  p.classes = logits.size(1);
  p.inner = deep ? logits.size(2) : 1;
  p.stride_n = logits.stride(0);
  p.stride_c = logits.stride(1);
  p.stride_l = deep ? logits.stride(2) : 0;
  if (is_float(target)) {
    p.shares = target.const_data_ptr();
    p.shares_type = type_of(target);
    p.shares_n = target.stride(0);
    p.shares_c = target.stride(1);
    p.shares_l = deep ? target.stride(2) : 0;
    return p;
  }
  p.target = target.const_data_ptr();
  p.label = label_of(target);
  p.target_n = target.stride(0);
  p.target_l = deep ? target.stride(1) : 0;
  return p;
}

enum class Wanted { loss, gradient, in_place };  // in place: the gradient overwrites the logits

// The op's results, and the Problem that writes to them.
struct Prepared {
  zoo::Problem problem;
  ScalarType accurate;
  Tensor loss, grad, rows, factor;
};

inline Prepared prepare(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight, double gamma,
                        double label_smoothing, double scale, int64_t ignore_index, int64_t reduction, Wanted wanted, bool want_rows,
                        const std::optional<Tensor>& other, const std::optional<Tensor>& share) {
  const auto accurate = logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  check(logits, target, weight, accurate);
  check_pair(target, other, share, accurate);
  zoo::Problem p = problem_of(logits, target);
  if (other.has_value()) {
    p.other = other->const_data_ptr();
    p.share = share->const_data_ptr();
  }
  p.weight = weight.has_value() ? weight->const_data_ptr() : nullptr;
  p.gamma = gamma;
  p.smoothing = label_smoothing;
  p.scale = scale;
  p.ignore_index = ignore_index;
  p.reduction = static_cast<zoo::Reduction>(reduction);

  const int64_t nothing[] = {0}, each_row[] = {p.n, p.inner};
  const auto none = torch::headeronly::IntHeaderOnlyArrayRef(nothing, size_t(1));
  const auto scalar = torch::headeronly::IntHeaderOnlyArrayRef(nothing, size_t(0));
  const auto all = torch::headeronly::IntHeaderOnlyArrayRef(each_row, size_t(logits.dim() - 1));
  const bool each = p.reduction == zoo::Reduction::none;
  Tensor loss = torch::stable::new_empty(logits, each ? all : scalar, accurate);
  Tensor grad = wanted == Wanted::in_place ? logits
                : wanted == Wanted::gradient ? torch::stable::empty_like(logits)
                                             : torch::stable::new_empty(logits, none);
  Tensor rows = torch::stable::new_empty(logits, want_rows ? all : none, accurate);
  Tensor factor = torch::stable::new_empty(logits, scalar, accurate);
  if (each) p.loss_rows = loss.mutable_data_ptr();
  if (want_rows) p.p_rows = rows.mutable_data_ptr();
  if (wanted != Wanted::loss) {
    p.grad = grad.mutable_data_ptr();
    p.grad_n = grad.stride(0);
    p.grad_c = grad.stride(1);
    p.grad_l = grad.dim() == 3 ? grad.stride(2) : 0;
  }
  return {p, accurate, loss, grad, rows, factor};
}

}  // namespace
