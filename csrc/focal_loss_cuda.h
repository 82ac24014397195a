// The kernels of the focal loss on CUDA; no torch. tests/cpp/cuda_on_cpu.cpp compiles the same text for the CPU, a fiber for
// each thread, so only what that file defines is used of the language.
//
// Three launches: `count` adds up rows and weights, the kernel for the row length writes loss and gradient, `finish` adds the
// blocks' sums in order: no atomics, the same bits each time. A grid of one block does all three in one launch.
// A label out of range makes its row's loss NaN and its gradient 0, reads nothing, and leaves its row's number for the host.
#pragma once

#include <cfloat>

#include "focal_loss_rows.h"

namespace zoo {
namespace {

constexpr int most_blocks = 2048;
constexpr int tile_rows = 128;     // rows, and threads, of the kernel for few classes
constexpr int tile_classes = 32;   // most classes that it takes
constexpr int warp_threads = 128;  // four rows at a time
constexpr int long_threads = 512;  // for one long row

// Device memory: 4 doubles a block, then the factor and the count.
struct Scratch {
  double* blocks;  // (count or loss, weight or power) of each block; 2 * most_blocks
  double* norm;    // factor that multiplies loss and gradient, number of rows that count
  int64_t* wrong;  // in host memory: 1 + a row with a label out of range, whichever is written last; untouched without one
};

struct Totals {
  double a, b;
};

// Sum over the block, the same order each time; valid in thread 0. `room` holds a Totals for each thread.
__device__ inline Totals block_sum(Totals mine, Totals* room) {
  const int me = int(threadIdx.x), size = int(blockDim.x);
  room[me] = mine;
  __syncthreads();
  for (int step = size / 2; step > 0; step /= 2) {
    if (me < step) {
      room[me].a += room[me + step].a;
      room[me].b += room[me + step].b;
    }
    __syncthreads();
  }
  const Totals out = room[0];
  __syncthreads();
  return out;
}

__device__ inline Totals counted(const Problem& p, int64_t first, int64_t step) {
  Totals mine{0, 0};
  for (int64_t row = first; row < p.n * p.inner; row += step) {
    const int64_t label = label_at(p, row);
    if (label == p.ignore_index) continue;
    mine.a += 1;
    if (p.reduction == Reduction::weighted_mean) mine.b += weight_of(p, uint64_t(label) < uint64_t(p.classes) ? label : 0);
  }
  return mine;
}

__device__ inline double factor_of(const Problem& p, Totals all) {
  const double over = p.reduction == Reduction::mean ? all.a : p.reduction == Reduction::weighted_mean ? all.b : 1.0;
  return over == 0 ? 0.0 : p.scale / over;
}

__global__ void count_rows(Problem p, Scratch scratch) {
  __shared__ Totals room[256];
  const Totals all = block_sum(counted(p, blockIdx.x * int64_t(blockDim.x) + threadIdx.x, int64_t(gridDim.x) * blockDim.x), room);
  if (threadIdx.x == 0) {
    scratch.blocks[2 * blockIdx.x] = all.a;
    scratch.blocks[2 * blockIdx.x + 1] = all.b;
  }
}

__device__ inline Totals gathered(const Scratch& scratch, int blocks, Totals* room) {
  Totals mine{0, 0};
  for (int b = int(threadIdx.x); b < blocks; b += int(blockDim.x)) {
    mine.a += scratch.blocks[2 * b];
    mine.b += scratch.blocks[2 * b + 1];
  }
  return block_sum(mine, room);
}

__global__ void normalise(Problem p, Scratch scratch, int blocks) {
  __shared__ Totals room[256];
  const Totals all = gathered(scratch, blocks, room);
  if (threadIdx.x == 0) {
    scratch.norm[0] = factor_of(p, all);
    scratch.norm[1] = all.a;
  }
}

template <typename A>
__device__ inline void publish(const Problem& p, Totals all, double factor, double count, A* loss, A* power) {
  if (p.reduction != Reduction::none) *loss = A(all.a * factor);
  *power = A(count == 0 ? 0.0 : all.b / count);
}

template <typename A>
__global__ void finish(Problem p, Scratch scratch, int blocks, A* loss, A* power) {
  __shared__ Totals room[256];
  const Totals all = gathered(scratch, blocks, room);
  if (threadIdx.x == 0) publish(p, all, scratch.norm[0], scratch.norm[1], loss, power);
}

// What a row kernel does before its rows and after them.
template <typename A>
struct Frame {
  const Problem& p;
  const Scratch& scratch;
  Totals* room;
  double factor, count;

  __device__ Frame(const Problem& problem, const Scratch& s, Totals* r) : p(problem), scratch(s), room(r) {
    __shared__ double norm[2];
    if (gridDim.x == 1) {
      const Totals all = block_sum(counted(p, threadIdx.x, blockDim.x), room);
      if (threadIdx.x == 0) {
        norm[0] = factor_of(p, all);
        norm[1] = all.a;
      }
    } else if (threadIdx.x == 0) {
      norm[0] = scratch.norm[0];
      norm[1] = scratch.norm[1];
    }
    __syncthreads();
    factor = norm[0];
    count = norm[1];
  }

  __device__ void close(Totals mine, A* loss, A* power) const {
    const Totals all = block_sum(mine, room);
    if (threadIdx.x != 0) return;
    if (gridDim.x == 1) {
      publish(p, all, factor, count, loss, power);
    } else {
      scratch.blocks[2 * blockIdx.x] = all.a;
      scratch.blocks[2 * blockIdx.x + 1] = all.b;
    }
  }
};

// Element types: how one is stored, and in what it is computed.
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

// How a row's label counts: `own` is the weight of the label itself, other classes have `share` of theirs.
template <typename A>
struct Row {
  int64_t number, label;
  bool ignored, wrong;

  __device__ Row(const Problem& p, int64_t row) : number(row), label(label_at(p, row)) {
    ignored = label == p.ignore_index;
    wrong = !ignored && uint64_t(label) >= uint64_t(p.classes);
    if (ignored || wrong) label = -1;
  }
  __device__ bool plain() const { return !ignored && !wrong; }

  // Loss, power and p of the row go out; returns what the block adds up.
  __device__ Totals write(const Frame<A>& frame, double loss, double power, double prob) const {
    const Problem& p = frame.p;
    const double nan = double(NAN);
    if (wrong) *static_cast<volatile int64_t*>(frame.scratch.wrong) = number + 1;
    write_row(p.loss_rows, p, number, wrong ? nan : ignored ? 0.0 : loss * frame.factor);
    write_row(p.p_rows, p, number, wrong ? nan : ignored ? 1.0 : prob);
    return wrong ? Totals{nan, 0} : ignored ? Totals{0, 0} : Totals{loss, power};
  }
};

template <typename A>
__device__ inline A amount(const Problem& p, int64_t c, int64_t label) {
  const A share = A(p.smoothing) / A(p.classes);
  return A(weight_of(p, c)) * (c == label ? A(1) - A(p.smoothing) + share : share);
}

// Terms of class c of a row whose sums are known: `below` is the sum of exp(z - top) over all classes but class `best`.
template <typename A>
__device__ inline Terms<A> terms_of(A shift, A below, bool is_best, A gamma) {
  const A e = std::exp(shift);
  return terms(shift, e, is_best ? below : A(1) - e + below, gamma);
}

// d loss / d z of class c with label smoothing: p (all - g) - g q, all being the sum of the classes' g.
template <typename A>
__device__ inline A smoothed_slope(const Terms<A>& t, A g, A all) {
  return t.p * (all - g) - g * t.q;
}

// ---- few classes: a tile of rows through shared memory, a thread a row ----------------------------------------------------

template <typename T>
__global__ void few_classes(Problem p, Scratch scratch, typename T::Real* loss, typename T::Real* power) {
  using A = typename T::Real;
  using S = typename T::Stored;
  __shared__ Totals room[tile_rows];
  __shared__ A tile[tile_rows * (tile_classes + 1)];
  const Frame<A> frame(p, scratch, room);
  const int C = int(p.classes), pitch = C | 1, me = int(threadIdx.x);  // an odd pitch: threads meet no bank twice
  const int64_t rows = p.n * p.inner;
  const bool flat_in = p.stride_c == 1 || C == 1, flat_out = p.grad_c == 1 || C == 1;
  const S* logits = static_cast<const S*>(p.logits);
  S* grad = static_cast<S*>(p.grad);
  Totals sums{0, 0};
  for (int64_t first = int64_t(blockIdx.x) * tile_rows; first < rows; first += int64_t(gridDim.x) * tile_rows) {
    const int here = int(rows - first < tile_rows ? rows - first : tile_rows);
    if (flat_in) {
      int r = me / C, c = me % C;
      const int dr = tile_rows / C, dc = tile_rows % C;
      while (r < here) {
        tile[r * pitch + c] = value_of<T>(logits[row_start(p, first + r) + c]);
        r += dr;
        c += dc;
        if (c >= C) c -= C, ++r;
      }
    } else if (me < here) {  // neighbours in memory are rows: image-like logits
      const int64_t from = row_start(p, first + me);
      for (int c = 0; c < C; ++c) tile[me * pitch + c] = value_of<T>(logits[from + c * p.stride_c]);
    }
    __syncthreads();
    if (me < here) {
      const Row<A> row(p, first + me);
      A* z = tile + me * pitch;
      A top = lowest<A>(), below = 0, rest = 0;
      int best = 0;
      for (int c = 0; c < C; ++c)
        if (z[c] > top) top = z[c], best = c;
      for (int c = 0; c < C; ++c) {
        const A e = std::exp(z[c] - top);
        if (c != best) below += e;
        if (c != row.label) rest += e;
      }
      if (row.plain()) {
        const A shift = z[row.label] - top, gamma = A(p.gamma), factor = A(frame.factor);
        const Terms<A> mine = terms(shift, std::exp(shift), rest, gamma);
        const A weight = amount<A>(p, row.label, row.label);
        A all = weight * mine.slope, total = weight == 0 ? A(0) : weight * mine.loss;
        if (p.smoothing > 0) {
          for (int c = 0; c < C; ++c) {
            const A part = amount<A>(p, c, row.label);
            if (c == row.label || part == 0) continue;
            const Terms<A> other = terms_of(z[c] - top, below, c == best, gamma);
            total += part * other.loss;
            all += part * other.slope;
          }
          for (int c = 0; c < C; ++c) {
            const Terms<A> each = c == row.label ? mine : terms_of(z[c] - top, below, c == best, gamma);
            const A part = amount<A>(p, c, row.label);
            z[c] = smoothed_slope(each, part == 0 ? A(0) : part * each.slope, all) * factor;
          }
        } else {
          const A slope = all * factor / (rest + std::exp(shift));
          for (int c = 0; c < C; ++c) z[c] = c == row.label ? -all * factor * mine.q : slope * std::exp(z[c] - top);
        }
        const Totals more = row.write(frame, double(total), double(mine.power), double(mine.p));
        sums.a += more.a;
        sums.b += more.b;
      } else {
        const Totals more = row.write(frame, 0, 0, 0);
        sums.a += more.a;
        for (int c = 0; c < C; ++c) z[c] = 0;
      }
    }
    __syncthreads();
    if (grad != nullptr) {
      if (flat_out) {
        int r = me / C, c = me % C;
        const int dr = tile_rows / C, dc = tile_rows % C;
        while (r < here) {
          grad[grad_start(p, first + r) + c] = stored_of<T>(tile[r * pitch + c]);
          r += dr;
          c += dc;
          if (c >= C) c -= C, ++r;
        }
      } else if (me < here) {
        const int64_t to = grad_start(p, first + me);
        for (int c = 0; c < C; ++c) grad[to + c * p.grad_c] = stored_of<T>(tile[me * pitch + c]);
      }
    }
    __syncthreads();
  }
  frame.close(sums, loss, power);
}

// ---- up to a thousand classes, no label smoothing: a warp a row, its values in registers ---------------------------------------------------

template <typename A>
__device__ inline A warp_sum(A value) {
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_xor_sync(0xffffffffu, value, lane);
  return value;
}

// Some neighbouring elements, moved as one.
template <typename S, int size>
struct alignas(sizeof(S) * size) Pack {
  S at[size];
};

// `packs` of `wide` neighbouring values a lane: C <= 32 * packs * wide. wide > 1 needs contiguous, aligned rows.
template <typename T, int packs, int wide>
__global__ void warp_row(Problem p, Scratch scratch, typename T::Real* loss, typename T::Real* power) {
  using A = typename T::Real;
  using S = typename T::Stored;
  using Group = Pack<S, wide>;
  __shared__ Totals room[warp_threads];
  const Frame<A> frame(p, scratch, room);
  const int64_t rows = p.n * p.inner, C = p.classes;
  const int lane = int(threadIdx.x) % 32;
  const S* logits = static_cast<const S*>(p.logits);
  S* grad = static_cast<S*>(p.grad);
  const A gamma = A(p.gamma), factor = A(frame.factor);
  Totals sums{0, 0};
  for (int64_t number = (int64_t(blockIdx.x) * warp_threads + threadIdx.x) / 32; number < rows; number += int64_t(gridDim.x) * (warp_threads / 32)) {
    const Row<A> row(p, number);
    const int64_t from = row_start(p, number), to = grad == nullptr ? 0 : grad_start(p, number);
    A z[packs * wide];
    A top = lowest<A>();
#pragma unroll
    for (int i = 0; i < packs; ++i) {
      const int64_t c0 = (int64_t(i) * 32 + lane) * wide;
      Group group;
      if (wide > 1) {
        if (c0 < C) group = *reinterpret_cast<const Group*>(logits + from + c0);
      } else if (c0 < C) {
        group.at[0] = logits[from + c0 * p.stride_c];
      }
#pragma unroll
      for (int k = 0; k < wide; ++k) {
        const A value = c0 < C ? value_of<T>(group.at[k]) : lowest<A>();
        z[i * wide + k] = value;
        top = value > top ? value : top;
      }
    }
    for (int step = 16; step > 0; step /= 2) {
      const A other = __shfl_xor_sync(0xffffffffu, top, step);
      top = other > top ? other : top;
    }
    A rest = 0, own = 0;
#pragma unroll
    for (int i = 0; i < packs * wide; ++i) {
      const int64_t c = (int64_t(i / wide) * 32 + lane) * wide + i % wide;
      if (c >= C) continue;
      if (c == row.label) own = z[i];
      else rest += std::exp(z[i] - top);
    }
    rest = warp_sum(rest);
    own = warp_sum(own);  // one lane has it
    A all = 0, total = 0;
    Terms<A> mine{};
    if (row.plain()) {
      mine = terms(own - top, A(std::exp(own - top)), rest, gamma);
      const A weight = amount<A>(p, row.label, row.label);
      all = weight * mine.slope;
      total = weight == 0 ? A(0) : weight * mine.loss;
    }
    if (lane == 0) {
      const Totals more = row.write(frame, double(total), double(mine.power), double(mine.p));
      sums.a += more.a;
      sums.b += more.b;
    }
    if (grad == nullptr) continue;
    const A slope = all * factor / (rest + A(std::exp(own - top)));
#pragma unroll
    for (int i = 0; i < packs; ++i) {
      const int64_t c0 = (int64_t(i) * 32 + lane) * wide;
      if (c0 >= C) continue;
      Group group;
#pragma unroll
      for (int k = 0; k < wide; ++k) {
        const int64_t c = c0 + k;
        const A shift = z[i * wide + k] - top;
        A out = 0;
        if (row.plain()) out = c == row.label ? -all * factor * mine.q : slope * std::exp(shift);
        group.at[k] = stored_of<T>(out);
      }
      if (wide > 1) *reinterpret_cast<Group*>(grad + to + c0) = group;
      else grad[to + c0 * p.grad_c] = group.at[0];
    }
  }
  frame.close(sums, loss, power);
}

// ---- other rows: a block a row, read twice (the second time from the cache) ------------------------------------------------

// Largest value, its class, and the sums of exp(z - top) over all classes but the label, and over all but one of the largest.
template <typename A>
struct Part {
  A top, rest, below;
  int64_t best;
};

template <typename A>
__device__ inline Part<A> joined(const Part<A>& x, const Part<A>& y) {
  const bool first = x.top > y.top || (x.top == y.top && x.best >= 0 && (y.best < 0 || x.best < y.best));
  const Part<A>&high = first ? x : y, &low = first ? y : x;
  const A scale = std::exp(low.top - high.top);
  return {high.top, high.rest + low.rest * scale, high.below + (low.below + (low.best >= 0 ? A(1) : A(0))) * scale, high.best};
}

template <typename T>
__global__ void long_row(Problem p, Scratch scratch, typename T::Real* loss, typename T::Real* power) {
  using A = typename T::Real;
  using S = typename T::Stored;
  __shared__ Totals room[long_threads];
  __shared__ Part<A> parts[long_threads];
  const Frame<A> frame(p, scratch, room);
  const int64_t rows = p.n * p.inner, C = p.classes;
  const int me = int(threadIdx.x);
  const S* logits = static_cast<const S*>(p.logits);
  S* grad = static_cast<S*>(p.grad);
  const A gamma = A(p.gamma), factor = A(frame.factor);
  Totals sums{0, 0};
  for (int64_t number = blockIdx.x; number < rows; number += gridDim.x) {
    const Row<A> row(p, number);
    const int64_t from = row_start(p, number), to = grad == nullptr ? 0 : grad_start(p, number);
    Part<A> mine{lowest<A>(), 0, 0, -1};
    for (int64_t c = me; c < C; c += long_threads) {
      const A z = value_of<T>(logits[from + c * p.stride_c]);
      if (z > mine.top) {
        const A scale = std::exp(mine.top - z);
        mine = {z, mine.rest * scale, (mine.below + (mine.best >= 0 ? A(1) : A(0))) * scale, c};
        if (c != row.label) mine.rest += A(1);
      } else {
        const A e = std::exp(z - mine.top);
        mine.below += e;
        if (c != row.label) mine.rest += e;
      }
    }
    parts[me] = mine;
    __syncthreads();
    for (int step = long_threads / 2; step > 0; step /= 2) {
      if (me < step) parts[me] = joined(parts[me], parts[me + step]);
      __syncthreads();
    }
    const Part<A> found = parts[0];
    __syncthreads();
    A all = 0, total = 0, own = 0;
    Terms<A> label{};
    if (row.plain()) {
      own = value_of<T>(logits[from + row.label * p.stride_c]) - found.top;
      label = terms(own, A(std::exp(own)), found.rest, gamma);
      const A weight = amount<A>(p, row.label, row.label);
      all = weight * label.slope;
      total = weight == 0 ? A(0) : weight * label.loss;
    }
    if (row.plain() && p.smoothing > 0) {
      Totals more{0, 0};
      for (int64_t c = me; c < C; c += long_threads) {
        const A part = amount<A>(p, c, row.label);
        if (c == row.label || part == 0) continue;
        const Terms<A> other = terms_of(A(value_of<T>(logits[from + c * p.stride_c]) - found.top), found.below, c == found.best, gamma);
        more.a += double(part * other.loss);
        more.b += double(part * other.slope);
      }
      more = block_sum(more, room);
      total += A(more.a);
      all += A(more.b);
    }
    if (me == 0) {
      const Totals more = row.write(frame, double(total), double(label.power), double(label.p));
      sums.a += more.a;
      sums.b += more.b;
    }
    if (grad == nullptr) continue;
    const A slope = all * factor / (found.rest + A(std::exp(own)));
    for (int64_t c = me; c < C; c += long_threads) {
      const A shift = value_of<T>(logits[from + c * p.stride_c]) - found.top;
      A out = 0;
      if (row.plain() && p.smoothing > 0) {
        const Terms<A> each = c == row.label ? label : terms_of(shift, found.below, c == found.best, gamma);
        const A part = amount<A>(p, c, row.label);
        out = smoothed_slope(each, part == 0 ? A(0) : part * each.slope, all) * factor;
      } else if (row.plain()) {
        out = c == row.label ? -all * factor * label.q : slope * std::exp(shift);
      }
      grad[to + c * p.grad_c] = stored_of<T>(out);
    }
  }
  frame.close(sums, loss, power);
}

// ---- which kernel, and how many blocks ----------------------------------------------------------------------------------------

inline bool aligned(const Problem& p, int64_t bytes, int64_t item) {
  const auto whole = [&](int64_t count) { return count * item % bytes == 0; };
  const bool in = p.stride_c == 1 && whole(p.stride_n) && (p.inner == 1 || whole(p.stride_l)) && uintptr_t(p.logits) % uintptr_t(bytes) == 0;
  const bool out = p.grad == nullptr || (p.grad_c == 1 && whole(p.grad_n) && (p.inner == 1 || whole(p.grad_l)) && uintptr_t(p.grad) % uintptr_t(bytes) == 0);
  return in && out && whole(p.classes);
}

// Launch is called with kernel, grid and block; see focal_loss_cuda.cu and tests/cpp/cuda_on_cpu.cpp.
template <typename T, int packs, typename Launch>
void warp_rows(const Problem& p, const Launch& launch, int64_t blocks) {
  constexpr int wide = 16 / int(sizeof(typename T::Stored)) > packs ? packs : 16 / int(sizeof(typename T::Stored));
  if (aligned(p, int64_t(wide * sizeof(typename T::Stored)), int64_t(sizeof(typename T::Stored))))
    launch(warp_row<T, packs / wide, wide>, blocks, warp_threads);
  else
    launch(warp_row<T, packs, 1>, blocks, warp_threads);
}

// `blocks`: how many the device runs at once, about.
template <typename T, typename Launch>
void choose(const Problem& p, const Launch& launch, int64_t blocks) {
  const int64_t rows = p.n * p.inner, C = p.classes;
  const auto grid = [&](int64_t each) {
    const int64_t wanted = (rows + each - 1) / each, most = blocks < most_blocks ? blocks : most_blocks;
    return wanted < 1 ? int64_t(1) : wanted < most ? wanted : most;
  };
  const int64_t warps = grid(warp_threads / 32);
  if (C <= tile_classes) launch(few_classes<T>, grid(tile_rows), tile_rows);
  else if (C > 1024 || p.smoothing > 0 || T::type == Type::f64) launch(long_row<T>, grid(1), long_threads);
  else if constexpr (T::type == Type::f64) return;  // its registers would not hold a row
  else if (C <= 128) warp_rows<T, 4>(p, launch, warps);
  else if (C <= 256) warp_rows<T, 8>(p, launch, warps);
  else warp_rows<T, 32>(p, launch, warps);
}

}  // namespace
}  // namespace zoo
