// zoo::focal_loss for CUDA tensors, in LibTorch's stable ABI: allocates, launches the kernels of focal_loss_cuda.h on the
// current stream. Nothing is copied back and nothing waited for: a wrong label shows as NaN, and in a word that zoo/ops.py reads.
#include <Python.h>

#include <atomic>

#include <cuda_runtime.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "focal_loss_cuda.h"
#include "tensors.h"

namespace {

// Blocks that keep the device busy: many small ones on each multiprocessor.
int64_t busy_blocks() {
  int device = 0, processors = 0;
  STD_TORCH_CHECK(cudaGetDevice(&device) == cudaSuccess && cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) == cudaSuccess,
                  "zoo::focal_loss: the CUDA device cannot be asked");
  return int64_t(processors) * 16;
}

// Host memory that every device's kernels write and the host reads without a call (see Scratch::wrong). Kept for good: a
// CUDA graph may hold its address.
std::atomic<int64_t*> wrong{nullptr};

int64_t* wrong_word() {
  static int64_t* const made = [] {
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;  // also where the first call is one of a graph being captured
    cudaThreadExchangeStreamCaptureMode(&mode);
    void* word = nullptr;
    const cudaError_t error = cudaHostAlloc(&word, sizeof(int64_t), cudaHostAllocPortable | cudaHostAllocMapped);
    cudaThreadExchangeStreamCaptureMode(&mode);
    STD_TORCH_CHECK(error == cudaSuccess, "zoo::focal_loss: no pinned memory: ", cudaGetErrorString(error));
    *static_cast<int64_t*>(word) = 0;
    wrong = static_cast<int64_t*>(word);
    return static_cast<int64_t*>(word);
  }();
  return made;
}

PyObject* take_wrong_row(PyObject*, PyObject*) {
  volatile int64_t* word = wrong.load();
  const int64_t found = word == nullptr ? 0 : *word;
  if (found != 0) *word = 0;
  return PyLong_FromLongLong(found - 1);
}

template <typename T>
void run(const zoo::Problem& p, const Tensor& loss, const Tensor& factor, const zoo::Scratch& scratch, cudaStream_t stream) {
  using A = typename T::Real;
  A* loss_out = static_cast<A*>(loss.mutable_data_ptr());
  A* power_out = static_cast<A*>(factor.mutable_data_ptr());
  zoo::choose<T>(
      p,
      [&](auto kernel, int64_t grid, int threads) {
        if (grid > 1) {
          const int64_t rows = p.n * p.inner, wanted = (rows + 1023) / 1024;
          const int counting = int(wanted < 256 ? wanted : 256);
          zoo::count_rows<<<counting, 256, 0, stream>>>(p, scratch);
          zoo::normalise<<<1, 256, 0, stream>>>(p, scratch, counting);
        }
        kernel<<<unsigned(grid), threads, 0, stream>>>(p, scratch, loss_out, power_out);
        if (grid > 1) zoo::finish<A><<<1, 256, 0, stream>>>(p, scratch, int(grid), loss_out, power_out);
      },
      busy_blocks());
}

std::tuple<Tensor, Tensor, Tensor, Tensor> focal_loss(
    const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight, double gamma, double label_smoothing,
    double scale, int64_t ignore_index, int64_t reduction, bool want_grad, bool want_rows) {
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  Prepared made = prepare(logits, target, weight, gamma, label_smoothing, scale, ignore_index, reduction, want_grad, want_rows);
  const int64_t size[] = {2 * zoo::most_blocks + 2};
  const Tensor room = torch::stable::new_empty(logits, torch::headeronly::IntHeaderOnlyArrayRef(size, size_t(1)), ScalarType::Double);
  double* doubles = static_cast<double*>(room.mutable_data_ptr());
  const zoo::Scratch scratch{doubles, doubles + 2 * zoo::most_blocks, wrong_word()};
  void* stream = nullptr;
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(logits.get_device_index(), &stream) == 0, "zoo::focal_loss: no current CUDA stream");
  const auto on = static_cast<cudaStream_t>(stream);
  switch (made.problem.type) {
    case zoo::Type::f32: run<zoo::F32>(made.problem, made.loss, made.factor, scratch, on); break;
    case zoo::Type::f64: run<zoo::F64>(made.problem, made.loss, made.factor, scratch, on); break;
    case zoo::Type::bf16: run<zoo::BF16>(made.problem, made.loss, made.factor, scratch, on); break;
    case zoo::Type::f16: run<zoo::F16>(made.problem, made.loss, made.factor, scratch, on); break;
  }
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "zoo::focal_loss: launch failed: ", cudaGetErrorString(error));
  return {made.loss, made.grad, made.rows, made.factor};
}

PyMethodDef methods[] = {
    {"take_wrong_row", take_wrong_row, METH_NOARGS,
     "take_wrong_row(): a row in which a kernel that has run met a label out of range, and forgets it; -1 where there is none."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C_cuda", "The focal loss in CUDA.", -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zoo, CUDA, m) { m.impl("focal_loss", TORCH_BOX(&focal_loss)); }

PyMODINIT_FUNC PyInit__C_cuda(void) { return PyModule_Create(&module); }
