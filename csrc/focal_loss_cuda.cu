// zoo::focal_loss for CUDA tensors, in LibTorch's stable ABI: allocates, launches the kernels of focal_loss_cuda.h on the
// current stream. Nothing is copied back or synchronised: a wrong label makes its row NaN, and the row's number is written to
// host memory that zoo/ops.py reads.
#include <Python.h>

#include <algorithm>
#include <atomic>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>

#include <cuda_runtime.h>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include "focal_loss_cuda.h"
#include "tensors.h"

namespace {

// Blocks of a kernel that the device runs at once, at most `most` per multiprocessor (0: as many as fit). Further blocks would
// start when these end, and most of the device would be idle while the last few run.
int64_t blocks_at_once(const void* kernel, int threads, int most) {
  static std::mutex alone;
  static std::map<std::tuple<const void*, int, int>, std::pair<int, int>> known;
  int device = 0;
  STD_TORCH_CHECK(cudaGetDevice(&device) == cudaSuccess, "zoo::focal_loss: the CUDA device cannot be asked");
  const std::lock_guard<std::mutex> lock(alone);
  auto [found, fresh] = known.try_emplace({kernel, threads, device});
  auto& [processors, fit] = found->second;
  if (fresh) {
    const bool told = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device) == cudaSuccess &&
                      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&fit, kernel, threads, 0) == cudaSuccess && fit > 0;
    if (!told) known.erase(found);
    STD_TORCH_CHECK(told, "zoo::focal_loss: the CUDA device cannot run this kernel: ", cudaGetErrorString(cudaGetLastError()));
  }
  return int64_t(processors) * (most != 0 && most < fit ? most : fit);
}

// Host memory that the kernels of all devices write and the host reads without a call (see Scratch::wrong). It is never freed,
// since a CUDA graph may hold its address.
std::atomic<int64_t*> wrong{nullptr};

int64_t* wrong_word() {
  static int64_t* const made = [] {
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;  // also if the first call is captured into a graph
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
void run(const zoo::Problem& p, const Tensor& loss, const Tensor& factor, zoo::Scratch scratch, cudaStream_t stream) {
  using A = typename T::Real;
  A* loss_out = static_cast<A*>(loss.mutable_data_ptr());
  A* power_out = static_cast<A*>(factor.mutable_data_ptr());
  zoo::choose<T>(p, [&](auto kernel, int64_t wanted, int threads, int most) {
    const int64_t busy = blocks_at_once(reinterpret_cast<const void*>(kernel), threads, most);
    const int64_t grid = std::clamp<int64_t>(wanted, 1, std::min<int64_t>(busy, zoo::most_blocks));
    if (grid > 1) {
      constexpr int64_t labels = zoo::most_counts * zoo::labels_at_once;  // of a counting block
      scratch.counting = int(std::min<int64_t>((p.n * p.inner + labels - 1) / labels, zoo::most_counts));
      zoo::count_rows<<<unsigned(scratch.counting), zoo::most_counts, 0, stream>>>(p, scratch);
    }
    kernel<<<unsigned(grid), unsigned(threads), 0, stream>>>(p, scratch, loss_out, power_out);
    if (grid > 1) zoo::finish<A><<<1, 256, 0, stream>>>(p, scratch, int(grid), loss_out, power_out);
  });
}

void launch(const Prepared& made, const Tensor& logits) {
  const int64_t size[] = {2 * (zoo::most_counts + zoo::most_blocks)};
  const Tensor room = torch::stable::new_empty(logits, torch::headeronly::IntHeaderOnlyArrayRef(size, size_t(1)), ScalarType::Double);
  auto* totals = static_cast<zoo::Totals*>(room.mutable_data_ptr());
  const zoo::Scratch scratch{totals, totals + zoo::most_counts, wrong_word(), 0};
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
}

std::tuple<Tensor, Tensor, Tensor, Tensor> focal_loss(
    const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight, double gamma, double label_smoothing,
    double scale, int64_t ignore_index, int64_t reduction, bool want_grad, bool want_rows, const std::optional<Tensor>& other,
    const std::optional<Tensor>& share) {
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const Wanted wanted = want_grad ? Wanted::gradient : Wanted::loss;
  const Prepared made = prepare(logits, target, weight, gamma, label_smoothing, scale, ignore_index, reduction, wanted, want_rows, other, share);
  launch(made, logits);
  return {made.loss, made.grad, made.rows, made.factor};
}

std::tuple<Tensor, Tensor, Tensor> focal_loss_in_place(
    const Tensor& logits, const Tensor& target, const std::optional<Tensor>& weight, double gamma, double label_smoothing,
    double scale, int64_t ignore_index, int64_t reduction, bool want_rows, const std::optional<Tensor>& other,
    const std::optional<Tensor>& share) {
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const Prepared made = prepare(logits, target, weight, gamma, label_smoothing, scale, ignore_index, reduction, Wanted::in_place, want_rows, other, share);
  launch(made, logits);
  return {made.loss, made.rows, made.factor};
}

PyMethodDef methods[] = {
    {"take_wrong_row", take_wrong_row, METH_NOARGS,
     "take_wrong_row(): a row in which a kernel that has run met a label out of range, and forgets it; -1 where there is none."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_C_cuda", "The focal loss in CUDA.", -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(zoo, CUDA, m) {
  m.impl("focal_loss", TORCH_BOX(&focal_loss));
  m.impl("focal_loss_", TORCH_BOX(&focal_loss_in_place));
}

PyMODINIT_FUNC PyInit__C_cuda(void) { return PyModule_Create(&module); }
