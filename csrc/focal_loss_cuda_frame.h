// The common parts of the CUDA kernels of the focal loss: sums over a block, the number of rows that count, element
// types, labels. No torch; tests/cpp/cuda_on_cpu.cpp compiles the same text for the CPU, one fiber per thread, so only
// the parts of CUDA that it defines are used.
#pragma once

#include <cfloat>

#include "focal_loss_rows.h"

namespace zoo {
namespace {

constexpr int most_blocks = 2048;       // of a row kernel
constexpr int most_counts = 256;        // blocks, and threads of each, that count rows
constexpr int labels_at_once = 8;       // labels that a thread has in flight while counting

struct Totals {
  double a, b;
};

// Device memory of one call.
struct Scratch {
  Totals* counts;  // rows that are not ignored and the sum of their weights, of each block that counted
  Totals* blocks;  // loss and power, of each block of the row kernel
  int64_t* wrong;  // in host memory: 1 + a row with a label out of range, the one written last; unchanged if there is none
  int counting;    // blocks that counted; 0: the row kernel is a single block and counts itself
};

template <typename A>
__device__ inline A warp_sum(A value, int lanes = 32) {
  for (int step = lanes / 2; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffffu, value, step);
  return value;
}

// Sum over a block of whole warps, valid in each thread; the order is always the same.
__device__ inline Totals block_sum(Totals mine) {
  __shared__ Totals room[32];
  const int me = int(threadIdx.x), warps = int(blockDim.x) / 32;
  mine = {warp_sum(mine.a), warp_sum(mine.b)};
  if (me % 32 == 0) room[me / 32] = mine;
  __syncthreads();
  Totals out{0, 0};
  for (int w = 0; w < warps; ++w) {
    out.a += room[w].a;
    out.b += room[w].b;
  }
  __syncthreads();
  return out;
}

// Rows first, first + step ...: all labels of a batch are loaded before the first is used.
__device__ inline Totals counted(const Problem& p, int64_t first, int64_t step) {
  const int64_t rows = p.n * p.inner;
  Totals mine{0, 0};
  if (p.shares != nullptr || p.other != nullptr) {  // rows without one label count as one each
    for (; first < rows; first += step)
      if (!Goal(p, first).ignored) mine.a += 1, mine.b += 1;
    return mine;
  }
  for (; first < rows; first += step * labels_at_once) {
    int64_t labels[labels_at_once];
#pragma unroll
    for (int i = 0; i < labels_at_once; ++i) labels[i] = first + i * step < rows ? label_at(p, first + i * step) : p.ignore_index;
#pragma unroll
    for (int i = 0; i < labels_at_once; ++i) {
      if (labels[i] == p.ignore_index) continue;
      mine.a += 1;
      if (p.reduction == Reduction::weighted_mean) mine.b += weight_of(p, uint64_t(labels[i]) < uint64_t(p.classes) ? labels[i] : 0);
    }
  }
  return mine;
}

__global__ void count_rows(Problem p, Scratch scratch) {
  const Totals all = block_sum(counted(p, blockIdx.x * int64_t(blockDim.x) + threadIdx.x, int64_t(gridDim.x) * blockDim.x));
  if (threadIdx.x == 0) scratch.counts[blockIdx.x] = all;
}

__device__ inline Totals gathered(const Totals* parts, int count) {
  Totals mine{0, 0};
  for (int i = int(threadIdx.x); i < count; i += int(blockDim.x)) {
    mine.a += parts[i].a;
    mine.b += parts[i].b;
  }
  return block_sum(mine);
}

__device__ inline double factor_of(const Problem& p, Totals counts) {
  const double over = p.reduction == Reduction::mean ? counts.a : p.reduction == Reduction::weighted_mean ? counts.b : 1.0;
  return over == 0 ? 0.0 : p.scale / over;
}

template <typename A>
__device__ inline void publish(const Problem& p, Totals sums, Totals counts, A* loss, A* power) {
  if (p.reduction != Reduction::none) *loss = A(sums.a * factor_of(p, counts));
  *power = A(counts.a == 0 ? 0.0 : sums.b / counts.a);
}

template <typename A>
__global__ void finish(Problem p, Scratch scratch, int blocks, A* loss, A* power) {
  const Totals counts = gathered(scratch.counts, scratch.counting), sums = gathered(scratch.blocks, blocks);
  if (threadIdx.x == 0) publish(p, sums, counts, loss, power);
}

// Prologue and epilogue of a row kernel.
template <typename A>
struct Frame {
  const Problem& p;
  const Scratch& scratch;
  Totals counts;
  double factor;  // multiplies loss and gradient

  __device__ Frame(const Problem& problem, const Scratch& s) : p(problem), scratch(s) {
    counts = scratch.counting == 0 ? block_sum(counted(p, threadIdx.x, blockDim.x)) : gathered(scratch.counts, scratch.counting);
    factor = factor_of(p, counts);
  }

  __device__ void close(Totals mine, A* loss, A* power) const {
    const Totals all = block_sum(mine);
    if (threadIdx.x != 0) return;
    if (scratch.counting == 0) publish(p, all, counts, loss, power);
    else scratch.blocks[blockIdx.x] = all;
  }
};

// Element types: storage and arithmetic types.
struct F32 { using Stored = float; using Real = float; static constexpr Type type = Type::f32; };
struct F64 { using Stored = double; using Real = double; static constexpr Type type = Type::f64; };
struct BF16 { using Stored = uint16_t; using Real = float; static constexpr Type type = Type::bf16; };
struct F16 { using Stored = uint16_t; using Real = float; static constexpr Type type = Type::f16; };

template <typename T>
__device__ inline typename T::Real value_of(typename T::Stored stored) {
  if constexpr (T::type == Type::bf16) return from_half(stored, true);
  else if constexpr (T::type == Type::f16) return from_half(stored, false);
  else return stored;
}
template <typename T>
__device__ inline typename T::Stored stored_of(typename T::Real value) {
  if constexpr (T::type == Type::bf16) return to_half(value, true);
  else if constexpr (T::type == Type::f16) return to_half(value, false);
  else return value;
}

template <typename A>
__device__ inline A lowest() {
  return sizeof(A) == 8 ? A(-DBL_MAX) : A(-FLT_MAX);  // finite: exp(z - lowest) of z = -inf is 0, not NaN
}

// A row's label, the first of two; -1 where the row is ignored, a label is out of range, or the row has shares instead.
template <typename A>
struct Row {
  int64_t number, label;
  bool ignored, wrong;

  __device__ Row(const Problem& p, int64_t row) : number(row) {
    const Goal goal(p, row);
    ignored = goal.ignored;
    wrong = goal.wrong;
    label = goal.plain() ? goal.label : -1;
  }
  __device__ bool plain() const { return !ignored && !wrong; }

  // Writes loss, power and p of the row, and adds the row to the block's `sums`.
  __device__ void write(const Frame<A>& frame, double loss, double power, double prob, Totals& sums) const {
    const Problem& p = frame.p;
    const double nan = double(NAN);
    if (wrong) *static_cast<volatile int64_t*>(frame.scratch.wrong) = number + 1;
    write_row(p.loss_rows, p, number, wrong ? nan : ignored ? 0.0 : loss * frame.factor);
    write_row(p.p_rows, p, number, wrong ? nan : ignored ? 1.0 : prob);
    sums.a += wrong ? nan : ignored ? 0.0 : loss;
    sums.b += wrong || ignored ? 0.0 : power;
  }
};

// ---- several classes with a share (is_soft): each has an amount w_c q_c and its own modulating factor ---------------------------

// Goal::amount in A.
template <typename A>
__device__ inline A amount(const Problem& p, A q, int64_t c) {
  return A(weight_of(p, c)) * (q * (A(1) - A(p.smoothing)) + A(p.smoothing) / A(p.classes));
}

// Weight times loss: 0 for a weight of 0 even if the loss is infinite, but NaN in a row without a softmax, whose p is NaN.
template <typename A>
__device__ inline A weighted(A weight, const Terms<A>& t) {
  return weight == 0 ? weight * t.p : weight * t.loss;
}

// Sums over the classes of a row, from `zero`: 0, or NaN for a row without a softmax.
template <typename A>
struct Mixed {
  A loss, g, power, p;

  __device__ explicit Mixed(A zero) : loss(zero), g(zero), power(zero), p(zero) {}

  __device__ void add(A part, A q, const Terms<A>& t) {
    loss += weighted(part, t);
    g += part == 0 ? A(0) : part * t.slope;
    power += q * t.power;
    p += q * t.p;
  }
};

// Terms of class c of a row whose sums are known: `below` is the sum of exp(z - top) over all classes but class `best`.
template <typename A>
__device__ inline Terms<A> terms_of(A shift, A below, bool is_best, A gamma) {
  const A e = std::exp(shift);
  return terms(shift, e, is_best ? below : A(1) - e + below, gamma);
}

// d loss / d z of class c: p (all - g) - g q, where all is the sum of g over the classes.
template <typename A>
__device__ inline A mixed_slope(const Terms<A>& t, A g, A all) {
  return t.p * (all - g) - g * t.q;
}

}  // namespace
}  // namespace zoo
