// The CUDA kernels of the focal loss, without torch (see focal_loss_cuda_frame.h).
//
// Three launches: `count_rows` sums rows and weights, the kernel for the row length writes loss and gradient, `finish` adds
// the blocks' sums in order. There are no atomics, so results are bit-identical. A single block does all three in one launch.
// A label out of range is not used as an index: its row's loss is NaN, its gradient 0, and the host gets the row's number.
#pragma once

#include "focal_loss_cuda_frame.h"

namespace zoo {
namespace {

constexpr int tile_rows = 128;      // rows, and threads, of the kernel for few classes
constexpr int tile_classes = 32;    // its largest number of classes
constexpr int tile_batch = 8;       // elements of a tile that a thread has in flight
constexpr int row_threads = 128;    // of a block in which each row has part of a warp or a whole warp
constexpr int few_threads = 512;    // of the single block for up to few_rows rows
constexpr int few_rows = 128;
constexpr int wide_lanes = 256;     // of a block for one row, held in registers
constexpr int long_threads = 512;   // of a block for one row that does not fit into registers
constexpr int long_batch = 4;       // packs of such a row that a thread has in flight

// ---- few classes: a tile of rows through shared memory, one thread per row

// Replaces the row in `z` (C values) by its gradient.
template <typename A>
__device__ inline void tile_row(const Frame<A>& frame, int64_t number, A* z, Totals& sums) {
  const Problem& p = frame.p;
  const Row<A> row(p, number);
  const int C = int(p.classes);
  const bool soft = is_soft(p);
  A top = z[0], below = 0, rest = 0;
  int best = 0;
  for (int c = 1; c < C; ++c)
    if (z[c] > top) top = z[c], best = c;
  const A shift = row.label >= 0 ? z[row.label] - top : A(0);
  for (int c = 0; c < C; ++c) {
    const A e = std::exp(z[c] - top);
    if (c != best) below += e;
    if (c != row.label) rest += e;
    if (!soft) z[c] = e;
  }
  if (!row.plain()) {
    row.write(frame, 0, 0, 0, sums);
    for (int c = 0; c < C; ++c) z[c] = 0;
    return;
  }
  const A gamma = A(p.gamma), factor = A(frame.factor);
  if (soft) {
    const Goal goal(p, number);
    below += top - top;  // NaN for an infinite maximum
    Mixed<A> sum(A(0) * below);
    for (int c = 0; c < C; ++c) {
      const A q = A(goal.of(p, c)), part = amount(p, q, c);
      if (part != 0 || q != 0) sum.add(part, q, terms_of(z[c] - top, below, c == best, gamma));
    }
    for (int c = 0; c < C; ++c) {
      const Terms<A> each = terms_of(z[c] - top, below, c == best, gamma);
      const A part = amount(p, A(goal.of(p, c)), c);
      z[c] = mixed_slope(each, part == 0 ? A(0) : part * each.slope, sum.g) * factor;
    }
    return row.write(frame, double(sum.loss), double(sum.power), double(sum.p), sums);
  }
  const A own = std::exp(shift);
  const Terms<A> mine = terms(shift, own, rest, gamma);
  const A weight = A(weight_of(p, row.label)), all = weight * mine.slope, slope = all * factor / (rest + own);
  for (int c = 0; c < C; ++c) z[c] *= slope;
  z[row.label] = -all * factor * mine.q;
  row.write(frame, double(weighted(weight, mine)), double(mine.power), double(mine.p), sums);
}

template <typename T>
__global__ void few_classes(Problem p, Scratch scratch, typename T::Real* loss, typename T::Real* power) {
  using A = typename T::Real;
  using S = typename T::Stored;
  __shared__ A tile[tile_rows * (tile_classes + 1)];
  const Frame<A> frame(p, scratch);
  const int C = int(p.classes), pitch = C | 1, me = int(threadIdx.x);  // an odd pitch avoids bank conflicts
  const int64_t rows = p.n * p.inner;
  const bool flat_in = p.stride_c == 1 || C == 1, flat_out = p.grad_c == 1 || C == 1;
  const int dr = tile_rows / C, dc = tile_rows % C;  // rows and classes from one element of a thread to its next
  const S* logits = static_cast<const S*>(p.logits);
  S* grad = static_cast<S*>(p.grad);
  Totals sums{0, 0};
  for (int64_t first = int64_t(blockIdx.x) * tile_rows; first < rows; first += int64_t(gridDim.x) * tile_rows) {
    const int here = int(rows - first < tile_rows ? rows - first : tile_rows);
    const int64_t mine = first + (me < here ? me : 0), from = row_start(p, mine), to = grad_start(p, mine);
    int r = flat_in ? me / C : me, c = flat_in ? me % C : 0;  // in image-like logits, neighbours in memory are different rows
    for (int begin = 0; begin < C; begin += tile_batch) {
      S got[tile_batch];
      int at[tile_batch];
#pragma unroll
      for (int i = 0; i < tile_batch; ++i) {
        at[i] = begin + i < C && r < here ? r * pitch + c : -1;
        if (at[i] >= 0) got[i] = logits[(flat_in ? row_start(p, first + r) : from) + c * p.stride_c];
        c += flat_in ? dc : 1;
        r += flat_in ? dr : 0;
        if (flat_in && c >= C) c -= C, ++r;
      }
#pragma unroll
      for (int i = 0; i < tile_batch; ++i)
        if (at[i] >= 0) tile[at[i]] = value_of<T>(got[i]);
    }
    __syncthreads();
    if (me < here) tile_row(frame, first + me, tile + me * pitch, sums);
    __syncthreads();
    if (grad != nullptr) {
      r = flat_out ? me / C : me;
      c = flat_out ? me % C : 0;
      for (int i = 0; i < C && r < here; ++i) {
        grad[(flat_out ? grad_start(p, first + r) : to) + c * p.grad_c] = stored_of<T>(tile[r * pitch + c]);
        c += flat_out ? dc : 1;
        r += flat_out ? dr : 0;
        if (flat_out && c >= C) c -= C, ++r;
      }
      __syncthreads();
    }
  }
  frame.close(sums, loss, power);
}

// ---- up to some thousand classes, one label per row: a team of lanes per row, values in registers

// Adjacent elements that are loaded or stored together.
template <typename S, int size>
struct alignas(sizeof(S) * size) Pack {
  S at[size];
};

// Maximum and sums over a team (lanes of a warp, or a block of several warps), valid in each lane.
template <typename A, int lanes>
__device__ inline A team_top(A value) {
  for (int step = (lanes < 32 ? lanes : 32) / 2; step > 0; step /= 2) {
    const A other = __shfl_xor_sync(0xffffffffu, value, step);
    value = other > value ? other : value;
  }
  if constexpr (lanes > 32) {
    __shared__ A room[32];
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = value;
    __syncthreads();
    for (int w = 0; w < lanes / 32; ++w) value = room[w] > value ? room[w] : value;
    __syncthreads();
  }
  return value;
}
template <typename A, int lanes>
__device__ inline void team_sums(A& x, A& y) {
  x = warp_sum(x, lanes < 32 ? lanes : 32);
  y = warp_sum(y, lanes < 32 ? lanes : 32);
  if constexpr (lanes > 32) {
    __shared__ A room[64];
    const int warp = int(threadIdx.x) / 32;
    if (threadIdx.x % 32 == 0) room[warp] = x, room[32 + warp] = y;
    __syncthreads();
    x = y = 0;
    for (int w = 0; w < lanes / 32; ++w) x += room[w], y += room[32 + w];
    __syncthreads();
  }
}

// `lanes` threads per row, each with `packs` packs of `wide` adjacent values: C <= lanes * packs * wide. wide > 1 requires
// contiguous, aligned rows. Teams without a row repeat the last one, as all lanes of a warp take part in its sums.
template <typename T, int lanes, int packs, int wide>
__global__ void __launch_bounds__(lanes == 8 ? few_threads : wide_lanes, 1) held_row(Problem p, Scratch scratch, typename T::Real* loss, typename T::Real* power) {
  using A = typename T::Real;
  using S = typename T::Stored;
  using Group = Pack<S, wide>;
  const Frame<A> frame(p, scratch);
  const int64_t rows = p.n * p.inner;
  const int C = int(p.classes), lane = int(threadIdx.x) % lanes, team = int(threadIdx.x) / lanes, teams = int(blockDim.x) / lanes;
  const S* logits = static_cast<const S*>(p.logits);
  S* grad = static_cast<S*>(p.grad);
  const A factor = A(frame.factor);
  Totals sums{0, 0};
  for (int64_t first = int64_t(blockIdx.x) * teams; first < rows; first += int64_t(gridDim.x) * teams) {
    const bool here = first + team < rows;
    const int64_t number = here ? first + team : rows - 1;
    const Row<A> row(p, number);
    const int label = int(row.label);
    const int64_t from = row_start(p, number);
    Group groups[packs];
#pragma unroll
    for (int i = 0; i < packs; ++i) {
      const int c = (i * lanes + lane) * wide;
      if (c >= C) continue;
      if constexpr (wide > 1) groups[i] = *reinterpret_cast<const Group*>(logits + from + c);
      else groups[i].at[0] = logits[from + c * p.stride_c];
    }
    A z[packs * wide], top = lowest<A>();
#pragma unroll
    for (int i = 0; i < packs * wide; ++i) {
      z[i] = (i / wide * lanes + lane) * wide < C ? value_of<T>(groups[i / wide].at[i % wide]) : lowest<A>();
      top = z[i] > top ? z[i] : top;
    }
    top = team_top<A, lanes>(top);
    A rest = 0, shift = 0;
#pragma unroll
    for (int i = 0; i < packs * wide; ++i) {
      const int c = (i / wide * lanes + lane) * wide + i % wide;
      const A far = z[i] - top;
      z[i] = std::exp(far);
      if (c == label) shift = far;
      else if (c < C) rest += z[i];
    }
    team_sums<A, lanes>(rest, shift);  // one lane has the label
    A all = 0, total = 0, own = std::exp(shift);
    Terms<A> mine{};
    if (row.plain()) {
      const A weight = A(weight_of(p, row.label));
      mine = terms(shift, own, rest, A(p.gamma));
      all = weight * mine.slope;
      total = weighted(weight, mine);
    }
    if (!here) continue;
    if (lane == 0) row.write(frame, double(total), double(mine.power), double(mine.p), sums);
    if (grad == nullptr) continue;
    const A slope = all * factor / (rest + own), label_slope = -all * factor * mine.q;
    const int64_t to = grad_start(p, number);
#pragma unroll
    for (int i = 0; i < packs; ++i) {
      const int c = (i * lanes + lane) * wide;
      if (c >= C) continue;
#pragma unroll
      for (int k = 0; k < wide; ++k) {
        const A out = !row.plain() ? A(0) : c + k == label ? label_slope : slope * z[i * wide + k];
        groups[i].at[k] = stored_of<T>(out);
      }
      if constexpr (wide > 1) *reinterpret_cast<Group*>(grad + to + c) = groups[i];
      else grad[to + c * p.grad_c] = groups[i].at[0];
    }
  }
  frame.close(sums, loss, power);
}

// ---- other rows: one block per row, read twice (the second time from the cache)

// Largest value, its class, and the sums of exp(z - top) over all classes but the label, and over all but one of the largest.
template <typename A>
struct Part {
  A top, rest, below;
  int64_t best;

  // Adds the pack `z` of classes c, c + 1 ...; `label` is relative to c as well.
  template <int wide>
  __device__ void add(const A (&z)[wide], int64_t c, int64_t label) {
    A high = z[0];
    int best_here = -1;
#pragma unroll
    for (int k = 1; k < wide; ++k) high = z[k] > high ? z[k] : high;
    if (high > top) {
      const A scale = std::exp(top - high);
      rest *= scale;
      below = (below + (best >= 0 ? A(1) : A(0))) * scale;
      top = high;
#pragma unroll
      for (int k = wide - 1; k >= 0; --k)
        if (z[k] == high) best_here = k;
      best = c + best_here;
    }
#pragma unroll
    for (int k = 0; k < wide; ++k) {
      const A e = std::exp(z[k] - top);
      if (k != best_here) below += e;
      if (k != label) rest += e;
    }
  }
};

template <typename A>
__device__ inline Part<A> joined(const Part<A>& x, const Part<A>& y) {
  const bool first = x.top > y.top || (x.top == y.top && x.best >= 0 && (y.best < 0 || x.best < y.best));
  const Part<A>&high = first ? x : y, &low = first ? y : x;
  const A scale = std::exp(low.top - high.top);
  return {high.top, high.rest + low.rest * scale, high.below + (low.below + (low.best >= 0 ? A(1) : A(0))) * scale, high.best};
}

// The sums of a whole row; `below` is NaN if there is no softmax.
template <typename A>
__device__ inline Part<A> whole(Part<A> found) {
  if (found.best >= 0) found.below += found.top - found.top;  // an infinite maximum
  else if (found.below == 0) found.below = A(NAN);            // -inf in each class
  else found.below -= 1;                                      // the maximum is `lowest` itself, which no class was above
  return found;
}

// Sums over the classes of a row with several shares.
template <typename T, int threads>
__device__ inline Mixed<double> mixed_of(const Problem& p, const Goal& goal, int64_t number, const Part<typename T::Real>& found) {
  using A = typename T::Real;
  const auto* logits = static_cast<const typename T::Stored*>(p.logits) + row_start(p, number);
  const double zero = double(A(0) * found.below);
  Totals first{zero, zero}, second{zero, zero};
  for (int64_t c = int(threadIdx.x); c < p.classes; c += threads) {
    const A q = A(goal.of(p, c)), part = amount(p, q, c);
    if (part == 0 && q == 0) continue;
    Mixed<A> one(A(0));
    one.add(part, q, terms_of(A(value_of<T>(logits[c * p.stride_c]) - found.top), found.below, c == found.best, A(p.gamma)));
    first.a += double(one.loss);
    first.b += double(one.g);
    second.a += double(one.power);
    second.b += double(one.p);
  }
  first = block_sum(first);
  second = block_sum(second);
  Mixed<double> sum(0);
  sum.loss = first.a;
  sum.g = first.b;
  sum.power = second.a;
  sum.p = second.b;
  return sum;
}

// Calls `each(pack, c)` for this thread's packs of a row; c is the class of the first element. A batch is loaded at once.
template <typename S, int threads, int wide, typename Each>
__device__ inline void packs_of(const S* row, int64_t stride, int64_t C, const Each& each) {
  using Group = Pack<S, wide>;
  for (int64_t begin = int64_t(threadIdx.x) * wide; begin < C; begin += int64_t(threads) * wide * long_batch) {
    Group groups[long_batch];
#pragma unroll
    for (int i = 0; i < long_batch; ++i) {
      const int64_t c = begin + int64_t(i) * threads * wide;
      if (c >= C) continue;
      if constexpr (wide > 1) groups[i] = *reinterpret_cast<const Group*>(row + c);
      else groups[i].at[0] = row[c * stride];
    }
#pragma unroll
    for (int i = 0; i < long_batch; ++i) {
      const int64_t c = begin + int64_t(i) * threads * wide;
      if (c < C) each(groups[i], c);
    }
  }
}

template <typename T, int threads, int wide>
__global__ void __launch_bounds__(threads, 1) long_row(Problem p, Scratch scratch, typename T::Real* loss, typename T::Real* power) {
  using A = typename T::Real;
  using S = typename T::Stored;
  using Group = Pack<S, wide>;
  __shared__ Part<A> parts[threads];
  const Frame<A> frame(p, scratch);
  const int64_t rows = p.n * p.inner, C = p.classes;
  const int me = int(threadIdx.x);
  const A gamma = A(p.gamma), factor = A(frame.factor);
  Totals sums{0, 0};
  for (int64_t number = blockIdx.x; number < rows; number += gridDim.x) {
    const Row<A> row(p, number);
    const S* logits = static_cast<const S*>(p.logits) + row_start(p, number);
    Part<A> seen{lowest<A>(), 0, 0, -1};
    packs_of<S, threads, wide>(logits, p.stride_c, C, [&](const Group& group, int64_t c) {
      A z[wide];
#pragma unroll
      for (int k = 0; k < wide; ++k) z[k] = value_of<T>(group.at[k]);
      seen.add(z, c, row.label - c);
    });
    parts[me] = seen;
    __syncthreads();
    for (int step = threads / 2; step > 0; step /= 2) {
      if (me < step) parts[me] = joined(parts[me], parts[me + step]);
      __syncthreads();
    }
    const Part<A> found = whole(parts[0]);
    __syncthreads();
    const bool soft = row.plain() && is_soft(p);
    const Goal goal(p, number);
    A all = 0, own = 0;
    Terms<A> mine{};
    Mixed<double> sum(0);
    if (soft) {
      sum = mixed_of<T, threads>(p, goal, number, found);
      all = A(sum.g);
    } else if (row.plain()) {
      const A shift = value_of<T>(logits[row.label * p.stride_c]) - found.top, weight = A(weight_of(p, row.label));
      own = std::exp(shift);
      mine = terms(shift, own, found.rest, gamma);
      all = weight * mine.slope;
      sum.loss = double(weighted(weight, mine));
      sum.power = double(mine.power);
      sum.p = double(mine.p);
    }
    if (me == 0) row.write(frame, sum.loss, sum.power, sum.p, sums);
    if (p.grad == nullptr) continue;
    if (p.grad == p.logits) __syncthreads();  // in place: all threads read the label's logit before it is overwritten
    S* grad = static_cast<S*>(p.grad) + grad_start(p, number);
    const A slope = all * factor / (found.rest + own);
    packs_of<S, threads, wide>(logits, p.stride_c, C, [&](const Group& group, int64_t c0) {
      Group made;
#pragma unroll
      for (int k = 0; k < wide; ++k) {
        const int64_t c = c0 + k;
        const A far = value_of<T>(group.at[k]) - found.top;
        A out = 0;
        if (soft) {
          const Terms<A> each = terms_of(far, found.below, c == found.best, gamma);
          const A part = amount(p, A(goal.of(p, c)), c);
          out = mixed_slope(each, part == 0 ? A(0) : part * each.slope, all) * factor;
        } else if (row.plain()) {
          out = c == row.label ? -all * factor * mine.q : slope * std::exp(far);
        }
        made.at[k] = stored_of<T>(out);
      }
      if constexpr (wide > 1) *reinterpret_cast<Group*>(grad + c0) = made;
      else grad[c0 * p.grad_c] = made.at[0];
    });
  }
  frame.close(sums, loss, power);
}

// ---- which kernel, and how many blocks ----------------------------------------------------------------------------------------

// Whether every row of logits and gradient consists of aligned packs of that many bytes.
template <typename T>
bool packed(const Problem& p, int64_t bytes) {
  const auto whole = [&](int64_t count) { return count * int64_t(sizeof(typename T::Stored)) % bytes == 0; };
  const bool in = p.stride_c == 1 && whole(p.stride_n) && (p.inner == 1 || whole(p.stride_l)) && uintptr_t(p.logits) % uintptr_t(bytes) == 0;
  const bool out = p.grad == nullptr || (p.grad_c == 1 && whole(p.grad_n) && (p.inner == 1 || whole(p.grad_l)) && uintptr_t(p.grad) % uintptr_t(bytes) == 0);
  return in && out && whole(p.classes);
}

// Launch is called with kernel, number of blocks, threads, and the largest number of blocks per multiprocessor (0: as
// many as fit); see focal_loss_cuda.cu and tests/cpp/cuda_on_cpu.cpp.
template <typename T, int lanes, int values, typename Launch>
void held_rows(const Problem& p, const Launch& launch) {
  constexpr int item = int(sizeof(typename T::Stored)), wide = 16 / item;
  const int64_t rows = p.n * p.inner;
  const bool few = lanes == 8 && rows <= few_rows;  // one block, thus one launch
  const int threads = lanes > 32 ? lanes : few ? few_threads : row_threads;
  const int64_t blocks = few ? 1 : (rows + threads / lanes - 1) / (threads / lanes);
  if (packed<T>(p, 16)) return launch(held_row<T, lanes, values / wide, wide>, blocks, threads, 0);
  if constexpr (lanes == 8 && item == 2)  // 100 classes in half precision
    if (packed<T>(p, 8)) return launch(held_row<T, lanes, values / 4, 4>, blocks, threads, 0);
  if constexpr (lanes <= 32) launch(held_row<T, lanes, values, 1>, blocks, threads, 0);
}

template <typename T, typename Launch>
void long_rows(const Problem& p, const Launch& launch) {
  constexpr int wide = 16 / int(sizeof(typename T::Stored));
  const int64_t rows = p.n * p.inner;
  if (p.classes <= 1024) launch(long_row<T, row_threads, 1>, rows, row_threads, 0);
  // one block per multiprocessor: with few rows in flight, the second read finds its row in the cache
  else if (packed<T>(p, 16)) launch(long_row<T, long_threads, wide>, rows, long_threads, 1);
  else launch(long_row<T, long_threads, 1>, rows, long_threads, 1);
}

template <typename T, typename Launch>
void choose(const Problem& p, const Launch& launch) {
  const int64_t rows = p.n * p.inner, C = p.classes;
  if (C <= tile_classes) return launch(few_classes<T>, (rows + tile_rows - 1) / tile_rows, tile_rows, 0);
  if constexpr (T::type != Type::f64) {  // such a row would not fit into registers
    if (!is_soft(p) && C <= 128) return held_rows<T, 8, 16>(p, launch);
    if (!is_soft(p) && C <= 256) return held_rows<T, 16, 16>(p, launch);
    if (!is_soft(p) && C <= 512) return held_rows<T, 32, 16>(p, launch);
    if (!is_soft(p) && C <= 1024) return held_rows<T, 32, 32>(p, launch);
    if (!is_soft(p) && C <= 8192 && packed<T>(p, 16)) return held_rows<T, wide_lanes, 32>(p, launch);
  }
  long_rows<T>(p, launch);
}

}  // namespace
}  // namespace zoo
