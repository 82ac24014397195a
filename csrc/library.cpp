// zoo::focal_loss for CPU tensors, in LibTorch's stable ABI: one library for every torch from 2.10 on. Allocates, calls
// focal_loss_cpu.cpp, and is the net below the checks of zoo/ops.py. Also what zoo/ops.py asks of the module itself.
#include <Python.h>

#include <pthread.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

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

// A fresh gradient is made of pages that the kernel touches first, and 4 KB at a time that takes longer than the loss
// (measured at 1,048,576 x 10: 18 ms against 3.4). Asked for in time, the system gives pages of 2 MB.
void ask_for_huge_pages(const zoo::Problem& p) {
#ifdef __linux__
  constexpr uintptr_t page = 2 << 20;
  const int64_t item = p.type == zoo::Type::f64 ? 8 : p.type == zoo::Type::f32 ? 4 : 2;
  const int64_t bytes = p.n * p.inner * p.classes * item;
  if (p.grad == nullptr || bytes < 2 * int64_t(page)) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(p.grad) / page * page + page;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(p.grad) + bytes) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a hint: what it returns changes nothing
#endif
}

zoo::Result compute(const zoo::Problem& p) {
  ask_for_huge_pages(p);
  return zoo::focal_loss(p, in_parallel);
}

void put(void* to, bool deep, double value) {
  if (deep) *static_cast<double*>(to) = value;
  else *static_cast<float*>(to) = float(value);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> focal_loss(
    const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight, double gamma, double label_smoothing,
    double scale, int64_t ignore_index, int64_t reduction, bool want_grad, bool want_rows) {
  Prepared made = prepare(logits, target, weight, gamma, label_smoothing, scale, ignore_index, reduction, want_grad, want_rows);
  const zoo::Problem& p = made.problem;
  const zoo::Result result = compute(p);
  STD_TORCH_CHECK(result.bad_row < 0, "target[", result.bad_row, "]=", result.bad_label, " is out of range for ", p.classes, " classes");
  const bool deep = made.accurate == ScalarType::Double;
  if (p.reduction != zoo::Reduction::none) put(made.loss.mutable_data_ptr(), deep, result.loss);
  put(made.factor.mutable_data_ptr(), deep, result.factor);
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

double number(PyObject* value) { return PyFloat_AsDouble(value); }
int64_t whole(PyObject* value) { return PyLong_AsLongLong(value); }
void* address(PyObject* value) { return reinterpret_cast<void*>(PyLong_AsUnsignedLongLong(value)); }

// Plain CPU tensors (N, C) by address: the dispatcher and its boxed arguments take longer than 128 x 10 logits do. Returns the
// first row with a bad label, or -1. The order of the arguments is that of `fields` in zoo/ops.py.
PyObject* run_at(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 19) return PyErr_Format(PyExc_TypeError, "run_at takes 19 arguments, not %zd", count);
  zoo::Problem p;
  p.logits = address(args[0]);
  p.type = static_cast<zoo::Type>(whole(args[1]));
  p.n = whole(args[2]);
  p.classes = whole(args[3]);
  p.stride_n = whole(args[4]);
  p.stride_c = whole(args[5]);
  p.target = address(args[6]);
  p.label = static_cast<zoo::Label>(whole(args[7]));
  p.target_n = whole(args[8]);
  p.weight = address(args[9]);
  p.grad = address(args[10]);
  p.grad_n = whole(args[11]);
  p.grad_c = whole(args[12]);
  void* const loss = address(args[13]);
  p.gamma = number(args[14]);
  p.smoothing = number(args[15]);
  p.scale = number(args[16]);
  p.ignore_index = whole(args[17]);
  p.reduction = static_cast<zoo::Reduction>(whole(args[18]));
  if (PyErr_Occurred()) return nullptr;
  zoo::Result result;
  Py_BEGIN_ALLOW_THREADS
  result = compute(p);
  Py_END_ALLOW_THREADS
  if (result.bad_row < 0) put(loss, p.type == zoo::Type::f64, result.loss);
  return PyLong_FromLongLong(result.bad_row);
}

PyMethodDef methods[] = {
    {"run_at", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)(void)>(run_at)), METH_FASTCALL,
     "The kernel on addresses, for zoo/ops.py; returns the first row with a bad label, or -1."},
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
