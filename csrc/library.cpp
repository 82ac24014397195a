// zoo::focal_loss for CPU tensors, in LibTorch's stable ABI: one library for every torch from 2.10 on. Allocates, calls
// focal_loss_cpu.cpp, and is the net below the checks of zoo/ops.py. Also what zoo/ops.py asks of the module itself.
#include <Python.h>

#include <pthread.h>

#include <torch/csrc/stable/library.h>

#include "focal_loss.h"
#include "tensors.h"

namespace {

// After a parallel region a bare fork has lost the threads that OpenMP still believes in, and the next region would wait
// for them for ever.
bool forked = false;

void in_parallel(int64_t n, void (*body)(int64_t, int64_t, void*), void* context) {
  if (forked) body(0, n, context);
  else torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) { body(begin, end, context); });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> focal_loss(
    const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight, double gamma, double label_smoothing,
    double scale, int64_t ignore_index, int64_t reduction, bool want_grad, bool want_rows) {
  Prepared made = prepare(logits, target, weight, gamma, label_smoothing, scale, ignore_index, reduction, want_grad, want_rows);
  const zoo::Problem& p = made.problem;
  const zoo::Result result = zoo::focal_loss(p, in_parallel);
  STD_TORCH_CHECK(result.bad_row < 0, "target[", result.bad_row, "]=", result.bad_label, " is out of range for ", p.classes, " classes");
  const auto put = [&](const Tensor& to, double value) {
    if (made.accurate == ScalarType::Double) *static_cast<double*>(to.mutable_data_ptr()) = value;
    else *static_cast<float*>(to.mutable_data_ptr()) = float(value);
  };
  if (p.reduction != zoo::Reduction::none) put(made.loss, result.loss);
  put(made.factor, result.factor);
  return {made.loss, made.grad, made.rows, made.factor};
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

// For the benchmark: the kernel alone, dense float or bfloat16 rows and int64 labels at addresses that the caller holds.
PyObject* run_at(PyObject*, PyObject* args) {
  unsigned long long logits = 0, target = 0, weight = 0, grad = 0;
  long long n = 0, classes = 0;
  int half = 0;
  double gamma = 0;
  if (!PyArg_ParseTuple(args, "KKKKLLpd", &logits, &target, &weight, &grad, &n, &classes, &half, &gamma)) return nullptr;
  zoo::Problem p;
  p.logits = reinterpret_cast<const void*>(logits);
  p.type = half ? zoo::Type::bf16 : zoo::Type::f32;
  p.n = n;
  p.classes = classes;
  p.stride_n = p.grad_n = classes;
  p.target = reinterpret_cast<const void*>(target);
  p.weight = reinterpret_cast<const void*>(weight);
  p.grad = reinterpret_cast<void*>(grad);
  p.gamma = gamma;
  const zoo::Result result = zoo::focal_loss(p, in_parallel);
  if (result.bad_row >= 0) return PyErr_Format(PyExc_IndexError, "target[%lld] is out of range", static_cast<long long>(result.bad_row));
  return PyFloat_FromDouble(result.loss);
}

PyMethodDef methods[] = {
    {"run_at", run_at, METH_VARARGS, "run_at(logits, target, weight, grad, n, classes, bf16, gamma): the mean loss; addresses, grad 0 for none."},
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
