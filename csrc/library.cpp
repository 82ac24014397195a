// zoo::focal_loss for CPU tensors, in LibTorch's stable ABI: one library for all versions of torch from 2.10. Allocates, calls
// focal_loss_cpu.cpp, and repeats the checks of zoo/ops.py. Also the functions that zoo/ops.py uses directly.
#include <Python.h>

#include <pthread.h>

#include <stdexcept>
#include <string>
#ifdef __linux__
#include <sys/mman.h>
#endif

#include <torch/csrc/stable/library.h>

#include "exchange.h"
#include "focal_loss.h"
#include "tensors.h"

namespace {

// A fork after a parallel region loses the threads that OpenMP still expects: the next region of the child would wait
// for them forever.
bool forked = false;

void in_parallel(int64_t n, void (*body)(int64_t, int64_t, void*), void* context) {
  if (forked) body(0, n, context);
  else torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) { body(begin, end, context); });
}

// A new gradient consists of pages that are mapped on first access; in pages of 4 KB that takes longer than the loss
// (measured at 1,048,576 x 10: 18 ms against 3.4). If requested early, the system provides pages of 2 MB. Mapped by one call per
// 2 MB instead of one trap per page, the whole op takes 15.6 ms of one core instead of 19.1 (9.1 if all pages are mapped). Memory
// that the allocator has kept is mapped already; mapping it again would walk over all of its pages, which takes as long as a
// copy (at 65,536 x 100, the op takes 1.5 ms without the walk and 1.9 with it).
struct Pages {
  static constexpr uintptr_t small = 4096, huge = 2 << 20;
  uintptr_t begin, end;
};

void get_pages(const zoo::Problem& p) {
#ifdef __linux__
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23  // Linux 5.14; older ones ignore the hint
#endif
  const int64_t item = p.type == zoo::Type::f64 ? 8 : p.type == zoo::Type::f32 ? 4 : 2;
  const int64_t bytes = p.n * p.inner * p.classes * item;
  if (p.grad == nullptr || p.grad == p.logits || bytes < 2 * int64_t(Pages::huge)) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(p.grad), end = begin + uintptr_t(bytes);
  const uintptr_t first = begin / Pages::huge * Pages::huge + Pages::huge, last = end / Pages::huge * Pages::huge;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  Pages pages{begin / Pages::small * Pages::small, end};
  const auto fill = [](int64_t from, int64_t to, void* context) {
    const Pages& all = *static_cast<const Pages*>(context);
    for (int64_t i = from; i < to; ++i) {
      const uintptr_t here = all.begin + uintptr_t(i) * Pages::huge, next = here + Pages::huge, end = next < all.end ? next : all.end;
      const uintptr_t last = (end - 1) / Pages::small * Pages::small;
      unsigned char mapped = 0;
      if (mincore(reinterpret_cast<void*>(last), Pages::small, &mapped) == 0 && (mapped & 1)) continue;
      madvise(reinterpret_cast<void*>(here), end - here, MADV_POPULATE_WRITE);
    }
  };
  in_parallel(int64_t((pages.end - pages.begin + Pages::huge - 1) / Pages::huge), fill, &pages);
#endif
}

zoo::Result compute(const zoo::Problem& p) {
  get_pages(p);
  return zoo::focal_loss(p, in_parallel);
}

void put(void* to, bool deep, double value) {
  if (deep) *static_cast<double*>(to) = value;
  else *static_cast<float*>(to) = float(value);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> computed(const Prepared& made) {
  const zoo::Problem& p = made.problem;
  const zoo::Result result = compute(p);
  if (result.bad_row >= 0)  // an IndexError in Python; STD_TORCH_CHECK would raise a RuntimeError that begins with a file name
    throw std::out_of_range("target[" + std::to_string(result.bad_row) + "]=" + std::to_string(result.bad_label) +
                            " is out of range for " + std::to_string(p.classes) + " classes");
  const bool deep = made.accurate == ScalarType::Double;
  if (p.reduction != zoo::Reduction::none) put(made.loss.mutable_data_ptr(), deep, result.loss);
  put(made.factor.mutable_data_ptr(), deep, result.factor);
  return {made.loss, made.grad, made.rows, made.factor};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> focal_loss(
    const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight, double gamma, double label_smoothing,
    double scale, int64_t ignore_index, int64_t reduction, bool want_grad, bool want_rows, const std::optional<Tensor>& other,
    const std::optional<Tensor>& share) {
  const Wanted wanted = want_grad ? Wanted::gradient : Wanted::loss;
  return computed(prepare(logits, target, weight, gamma, label_smoothing, scale, ignore_index, reduction, wanted, want_rows, other, share));
}

std::tuple<Tensor, Tensor, Tensor> focal_loss_in_place(
    const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight, double gamma, double label_smoothing,
    double scale, int64_t ignore_index, int64_t reduction, bool want_rows, const std::optional<Tensor>& other,
    const std::optional<Tensor>& share) {
  const auto [loss, grad, rows, factor] = computed(
      prepare(logits, target, weight, gamma, label_smoothing, scale, ignore_index, reduction, Wanted::in_place, want_rows, other, share));
  return {loss, rows, factor};
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

// ---- plain CPU tensors, directly from Python: the dispatcher and its boxed arguments take longer than 128 x 10 logits ----

constexpr double largest = 1.7976931348623157e308;

// Fills in the call for these arguments; false if they are not the plain case, which zoo/ops.py then handles.
bool problem_from(PyObject* const* args, zoo::Problem& p, View& loss) {
  View logits, target, weight, grad;
  if (!view_of(args[0], logits) || !type_of(logits, p.type) || !view_of(args[1], target) || !label_of(target, p.label)) return false;
  const int width = p.type == zoo::Type::f64 ? 64 : 32;
  p.logits = logits.begin();
  p.n = logits.shape[0];
  p.classes = logits.shape[1];
  p.stride_n = logits.strides[0];
  p.stride_c = logits.strides[1];
  p.target = target.begin();
  p.target_n = target.strides[0];
  if (target.shape[0] != p.n) return false;
  if (args[2] != Py_None) {
    if (!view_of(args[2], weight) || !weight.holds(1, a_float, width) || weight.shape[0] != p.classes || weight.strides[0] != 1) return false;
    p.weight = weight.begin();
  }
  if (args[3] != Py_None) {
    if (!view_of(args[3], grad) || grad.code != logits.code || grad.bits != logits.bits || grad.ndim != 2) return false;
    if (grad.shape[0] != p.n || grad.shape[1] != p.classes) return false;
    p.grad = grad.begin();
    p.grad_n = grad.strides[0];
    p.grad_c = grad.strides[1];
  }
  if (!view_of(args[4], loss) || !loss.holds(0, a_float, width)) return false;
  if (!number(args[5], 0, largest, p.gamma) || !number(args[7], 0, 1, p.smoothing) || !number(args[9], -largest, largest, p.scale)) return false;
  if (!PyLong_CheckExact(args[6]) || !PyUnicode_Check(args[8])) return false;
  p.ignore_index = PyLong_AsLongLong(args[6]);
  if (PyErr_Occurred()) return false;
  if (PyUnicode_CompareWithASCIIString(args[8], "mean") == 0) p.reduction = zoo::Reduction::mean;
  else if (PyUnicode_CompareWithASCIIString(args[8], "sum") == 0) p.reduction = zoo::Reduction::sum;
  else if (PyUnicode_CompareWithASCIIString(args[8], "weighted_mean") == 0) p.reduction = zoo::Reduction::weighted_mean;
  else return false;
  return true;
}

PyObject* run(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 10) return PyErr_Format(PyExc_TypeError, "run takes 10 arguments, not %zd", count);
  zoo::Problem p;
  View loss;
  if (!problem_from(args, p, loss)) {
    PyErr_Clear();
    Py_RETURN_NONE;
  }
  zoo::Result result;
  if (p.n * p.classes < 4096) {  // a few microseconds: releasing and reacquiring Python's lock costs more under contention
    result = compute(p);
  } else {
    Py_BEGIN_ALLOW_THREADS
    result = compute(p);
    Py_END_ALLOW_THREADS
  }
  if (result.bad_row < 0) put(loss.begin(), p.type == zoo::Type::f64, result.loss);
  return PyLong_FromLongLong(result.bad_row);
}

// Whether a tensor is a single 1 on the CPU; an object for Python.
PyObject* is_one(PyObject*, PyObject* object) {
  View value;
  if (!view_of(object, value) || value.lanes != 1 || value.ndim != 0 || value.code != a_float) Py_RETURN_FALSE;
  const bool one = value.bits == 32   ? *reinterpret_cast<const float*>(value.begin()) == 1.0f
                   : value.bits == 64 ? *reinterpret_cast<const double*>(value.begin()) == 1.0
                                      : false;
  return PyBool_FromLong(one);
}

PyObject* connect(PyObject*, PyObject* capsule) {
  const void* found = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
  if (found == nullptr) return nullptr;
  const auto* api = static_cast<const Exchange*>(found);
  while (api != nullptr && api->major != 1) api = api->previous;
  exchange = api;
  return PyBool_FromLong(api != nullptr);
}

template <typename Function>
PyCFunction method(Function* function) {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)(void)>(function));
}

PyMethodDef methods[] = {
    {"run", method(run), METH_FASTCALL,
     "run(logits, target, weight, grad, loss, gamma, ignore_index, label_smoothing, reduction, scale): writes the loss, and the\n"
     "gradient where grad is not None. The first row with a bad label, or -1; None where this is not the plain case on the CPU:\n"
     "logits (N, C), a reduced loss, every argument of its right type and in its range."},
    {"is_one", is_one, METH_O, "is_one(tensor): whether it is a single 1 on the CPU."},
    {"connect", connect, METH_O, "connect(torch.Tensor.__dlpack_c_exchange_api__): what run and is_one read tensors by; True if it is known."},
    {"capability", capability, METH_O, "capability(name or None): the instruction set in use, after choosing name."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C", "The focal loss in C++ for CPU tensors.", -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zoo, CPU, m) {
  m.impl("focal_loss", TORCH_BOX(&focal_loss));
  m.impl("focal_loss_", TORCH_BOX(&focal_loss_in_place));
}

PyMODINIT_FUNC PyInit__C(void) {
  pthread_atfork(nullptr, nullptr, [] { forked = true; });
  return PyModule_Create(&module);
}
