// zoo::focal_loss for CPU tensors, in LibTorch's stable ABI: one library for every torch from 2.10 on. Allocates, calls
// focal_loss_cpu.cpp, and is the net below the checks of zoo/ops.py. Also what zoo/ops.py asks of the module itself.
#include <Python.h>

#include <pthread.h>

#include <optional>
#include <string>
#include <tuple>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "focal_loss.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// After a parallel region a bare fork has lost the threads that OpenMP still believes in, and the next region would wait
// for them for ever.
bool forked = false;

void in_parallel(int64_t n, void (*body)(int64_t, int64_t, void*), void* context) {
  if (forked) body(0, n, context);
  else torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) { body(begin, end, context); });
}

zoo::Type type_of(const Tensor& logits) {
  switch (logits.scalar_type()) {
    case ScalarType::Float: return zoo::Type::f32;
    case ScalarType::Double: return zoo::Type::f64;
    case ScalarType::BFloat16: return zoo::Type::bf16;
    case ScalarType::Half: return zoo::Type::f16;
    default: STD_TORCH_CHECK(false, "zoo::focal_loss: logits must be float32, float64, bfloat16 or float16");
  }
}

zoo::Label label_of(const Tensor& target) {
  switch (target.scalar_type()) {
    case ScalarType::Long: return zoo::Label::i64;
    case ScalarType::Int: return zoo::Label::i32;
    case ScalarType::Byte: return zoo::Label::u8;
    default: STD_TORCH_CHECK(false, "zoo::focal_loss: target must be int64, int32 or uint8");
  }
}

void check(const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight, ScalarType accurate) {
  const int64_t dim = logits.dim();
  STD_TORCH_CHECK(dim == 2 || dim == 3, "zoo::focal_loss: logits must be (N, C) or (N, C, L)");
  STD_TORCH_CHECK(logits.size(1) > 0, "zoo::focal_loss: logits must have at least one class");
  STD_TORCH_CHECK(target.is_cpu(), "zoo::focal_loss: target must be on the CPU like the logits");
  STD_TORCH_CHECK(target.dim() == dim - 1 && target.size(0) == logits.size(0) && (dim == 2 || target.size(1) == logits.size(2)),
                  "zoo::focal_loss: target must be (N,) or (N, L)");
  if (weight.has_value())
    STD_TORCH_CHECK(weight->is_cpu() && weight->dim() == 1 && weight->size(0) == logits.size(1) &&
                        weight->scalar_type() == accurate && weight->is_contiguous(),
                    "zoo::focal_loss: weight must be (C,), contiguous, float32 (float64 for float64 logits) and on the CPU");
}

zoo::Problem problem_of(const Tensor& logits, const Tensor& target) {
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
  p.target = target.const_data_ptr();
  p.label = label_of(target);
  p.target_n = target.stride(0);
  p.target_l = deep ? target.stride(1) : 0;
  return p;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> focal_loss(
    const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight, double gamma, double label_smoothing,
    double scale, int64_t ignore_index, int64_t reduction, bool want_grad, bool want_rows) {
  const auto accurate = logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  check(logits, target, weight, accurate);
  zoo::Problem p = problem_of(logits, target);
  p.weight = weight.has_value() ? weight->const_data_ptr() : nullptr;
  p.gamma = gamma;
  p.smoothing = label_smoothing;
  p.scale = scale;
  p.ignore_index = ignore_index;
  p.reduction = static_cast<zoo::Reduction>(reduction);

  const int64_t nothing[] = {0};
  const auto none = torch::headeronly::IntHeaderOnlyArrayRef(nothing, size_t(1));
  const auto scalar = torch::headeronly::IntHeaderOnlyArrayRef(nothing, size_t(0));
  const bool each = p.reduction == zoo::Reduction::none;
  Tensor loss = torch::stable::new_empty(target, each ? target.sizes() : scalar, accurate);
  Tensor grad = want_grad ? torch::stable::empty_like(logits) : torch::stable::new_empty(logits, none);
  Tensor rows = torch::stable::new_empty(target, want_rows ? target.sizes() : none, accurate);
  Tensor factor = torch::stable::new_empty(target, scalar, accurate);
  if (each) p.loss_rows = loss.mutable_data_ptr();
  if (want_rows) p.p_rows = rows.mutable_data_ptr();
  if (want_grad) {
    p.grad = grad.mutable_data_ptr();
    p.grad_n = grad.stride(0);
    p.grad_c = grad.stride(1);
    p.grad_l = grad.dim() == 3 ? grad.stride(2) : 0;
  }

  const zoo::Result result = zoo::focal_loss(p, in_parallel);
  STD_TORCH_CHECK(result.bad_row < 0, "target[", result.bad_row, "]=", result.bad_label, " is out of range for ", p.classes, " classes");
  const auto put = [&](const Tensor& to, double value) {
    if (accurate == ScalarType::Double) *static_cast<double*>(to.mutable_data_ptr()) = value;
    else *static_cast<float*>(to.mutable_data_ptr()) = float(value);
  };
  if (!each) put(loss, result.loss);
  put(factor, result.factor);
  return {loss, grad, rows, factor};
}

PyObject* capability(PyObject*, PyObject* name) {
  if (name != Py_None) {
    Py_ssize_t size = 0;
    const char* text = PyUnicode_AsUTF8AndSize(name, &size);
    if (text == nullptr) return nullptr;
    if (!zoo::set_capability(text)) return PyErr_Format(PyExc_ValueError, "this CPU or build has no %s", text);
  }
  return PyUnicode_FromString(zoo::capability());
}

PyMethodDef methods[] = {
    {"capability", capability, METH_O, "capability(name or None): the instruction set in use, after choosing name."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", "The focal loss in C++ for CPU tensors.", -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zoo, CPU, m) { m.impl("focal_loss", TORCH_BOX(&focal_loss)); }

PyMODINIT_FUNC PyInit__C(void) {
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
  return PyModule_Create(&module);
}
