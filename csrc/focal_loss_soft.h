// Rows in which several classes have a share (label smoothing, two labels, shares in memory), in vectors of ZOO_W floats,
// several rows at a time if they fit the buffers; included once for each instruction set by focal_loss_simd.h.
//
// l = -sum_c a_c (1 - p_c)^gamma log p_c with a_c = w_c q_c; with g_c = a_c slope_c (see slope_of) and G their sum,
// d l / d z_j = p_j (G - g_j) - g_j (1 - p_j) = p_j G - g_j. exp is relative to the row's maximum, so that log p_c =
// (z_c - top) - log(total) needs no logarithm per class. The largest class, the only one that can have p > 1/2, is excluded
// from two sums, in which the others would be rounded away: `below`, which gives log(total) = log1p(below) and 1 - p_c =
// (below + (1 - e_c)) / total, and G; its own gradient has the first form.

namespace zoo {
namespace {
namespace ZOO_ISA {

constexpr int64_t soft_floats = 4096;  // per buffer; longer rows are processed in parts, in each pass
constexpr int64_t soft_rows = W < 8 ? W : 8;  // at a time: with 16, rows of 100 classes would not fit an L1 cache of 32 KB
constexpr int64_t soft_run = 64 * W;   // number of terms summed separately, to limit rounding errors
constexpr float soft_reach = 2e4f;     // classes further below the maximum count as p = 0; with an amount, their row is computed by exact_row

// Sums over a row, or a part of one, in each lane.
struct Mixture {
  F g{}, own{};  // slopes of all classes except the largest, and of the largest
  F loss{}, power{}, p{};
};

struct Soft {
  const Call& call;
  const Problem& p;
  const int64_t C, width;    // width: of a row in the buffers, whole vectors
  const int64_t step;        // rows at a time
  const Gamma gamma;
  const float keep, spread;  // q becomes keep q + spread
  const bool simple;         // amounts equal shares, and p is not needed
  D loss{}, modulation{};
  // Of the current rows:
  int64_t rows;
  bool skip[W];                    // ignored, or for exact_row
  alignas(64) float top[W];
  alignas(64) float below[W], inverse[W], log_total[W];
  alignas(64) float alone[W];      // the exponential of the largest class, 1; or 2, which no class has, if several are the largest
  alignas(64) float all_g[W], own_slope[W];
  alignas(64) float far[soft_floats + W];     // z, then z - top, then g
  alignas(64) float e[soft_floats + W];
  alignas(64) float shares[soft_floats + W];  // converted shares
  alignas(64) float w[soft_floats + W];       // weights, 0 past the end

  explicit Soft(const Call& c)
      : call(c), p(c.problem), C(c.problem.classes), width(C < soft_floats ? (C + W - 1) / W * W : soft_floats),
        step(soft_floats / width < soft_rows ? soft_floats / width : soft_rows), gamma(c.problem.gamma), keep(float(1 - c.problem.smoothing)),
        spread(float(c.problem.smoothing / double(c.problem.classes))),
        simple(p.weight == nullptr && p.smoothing == 0 && p.p_rows == nullptr) {
    weights(0);
  }

  int64_t part(int64_t first) const { return C - first < soft_floats ? C - first : soft_floats; }

  // Converts `count` elements of an array to floats in `to`.
  template <typename S>
  static void convert(const void* data, int64_t from, int64_t stride, int64_t count, float* to) {
    const auto* values = static_cast<const typename S::Stored*>(data) + from;
    int64_t i = 0;
    if (stride == 1)
      for (; i + W <= count; i += W) store(to + i, load_as<S>(values + i));
    for (; i < count; ++i) {
      if constexpr (std::is_same_v<S, Single>) to[i] = values[i * stride];
      else to[i] = from_half(values[i * stride], std::is_same_v<S, Brain>);
    }
  }
  ZOO_INLINE static const float* fetch(const void* data, Type type, int64_t from, int64_t stride, int64_t count, float* to) {
    if (type == Type::f32 && stride == 1) return static_cast<const float*>(data) + from;
    if (type == Type::f32) convert<Single>(data, from, stride, count, to);
    else if (type == Type::bf16) convert<Brain>(data, from, stride, count, to);
    else convert<Half>(data, from, stride, count, to);
    return to;
  }

  ZOO_INLINE const float* logits(int64_t start, int64_t first, float* to) const {
    return fetch(p.logits, p.type, start + first * p.stride_c, p.stride_c, part(first), to);
  }

  // Shares of a part's classes.
  ZOO_INLINE const float* targets(const Goal& goal, int64_t first, float* to) const {
    const int64_t count = part(first);
    if (p.shares != nullptr) return fetch(p.shares, p.shares_type, goal.start + first * p.shares_c, p.shares_c, count, to);
    for (int64_t i = 0; i < count; i += W) store(to + i, F{});
    const auto put = [&](int64_t label, double share) {
      if (label >= first && label < first + count) to[label - first] = float(share);
    };
    put(goal.other, 1 - goal.share);
    put(goal.label, goal.label == goal.other ? 1.0 : goal.share);
    return to;
  }

  void weights(int64_t first) {
    const int64_t count = part(first);
    for (int64_t i = 0; i < count; ++i) w[i] = p.weight == nullptr ? 1.0f : static_cast<const float*>(p.weight)[first + i];
    for (int64_t i = count; i % W != 0; ++i) w[i] = 0;
  }

  ZOO_INLINE static F largest(const float* z, int64_t count) {
    F high = all(z[0]);
    int64_t i = 0;
    for (; i + W <= count; i += W) high = larger(load(z + i), high);
    return i < count ? larger(load_end(z + i, count - i, high), high) : high;
  }

  // exp(z - top) of a part, and z - top: the sum of those below the maximum, and 1 for each that is the maximum. `wide`: z -
  // top may be beyond the guard. Returns false if one is not above -soft_reach; it is stored as -soft_reach, or NaN.
  template <bool wide>
  ZOO_INLINE static bool exponentials(const float* z, float* apart, float* to, int64_t count, float high, F& below, F& ties, Guard& guard) {
    I within{};
    within = ~within;
    const auto one = [&](F& distance) {
      if constexpr (!wide) return guard.exp(distance);
      within &= distance > -soft_reach;
      distance = pick(distance < -soft_reach, all(-soft_reach), distance);
      return exp_of<true>(pick(distance < -300.0f, all(-300.0f), distance), 0.0f);
    };
    int64_t i = 0;
    for (; i + W <= count; i += W) {
      __builtin_prefetch(z + i + soft_rows * count);  // of the next rows: memory is read during the computation
      F distance = load(z + i) - high;
      const F value = one(distance);
      store(apart + i, distance);
      store(to + i, value);
      split(value, 1.0f, value, below, all(1.0f), ties);
    }
    if (i < count) {
      F distance = load_end(z + i, count - i, all(high)) - high;
      const F value = first_of(one(distance), count - i);
      store(apart + i, distance);
      store(to + i, value);
      split(value, 1.0f, value, below, all(1.0f), ties);
    }
    return !wide || !any(~within);
  }

  template <bool wide>
  ZOO_INLINE static bool exponentials_of(const float* z, float* apart, float* to, int64_t count, float high, F& below, F& ties, Guard& guard) {
    bool within = true;
    for (int64_t at = 0; at < count; at += soft_run) {
      F run{};
      within &= exponentials<wide>(z + at, apart + at, to + at, count - at < soft_run ? count - at : soft_run, high, run, ties, guard);
      below += run;
    }
    return within;
  }

  // Whether a part has a NaN for z - top, or an amount for a class that counts as p = 0: of a masked class (z = -inf) it is 0.
  bool beyond(const float* apart, const float* q, const float* weight, int64_t count) const {
    I found{};
    for (int64_t i = 0; i < count; i += W) {
      const bool whole = i + W <= count;
      const F distance = whole ? load(apart + i) : load_end(apart + i, count - i, F{});
      const F amount = ((whole ? load(q + i) : load_end(q + i, count - i, F{})) * keep + spread) * load(weight + i);
      found |= (distance != distance) | ((distance <= -soft_reach) & (amount != 0.0f));
    }
    return any(found);
  }

  // 1 / total and its logarithm for the current rows.
  ZOO_INLINE void totals(F sum, F ties) {
    const F rest = sum + (ties - 1.0f), over = 1.0f / (1.0f + rest);
    const Log log = log_of(over, rest * over);
    store(below, rest);
    store(inverse, over);
    store(log_total, -(log.k * 0.693147182f + log.log_m));
    store(alone, pick(ties == 1.0f, all(1.0f), all(2.0f)));
  }

  // Sums over a part's classes, from their shares; g replaces z - top. kind: gamma, 0 or 2, or 1 for any other.
  template <int kind, bool plain>
  ZOO_INLINE Mixture mix(const float* q, const float* weight, int64_t r, int64_t at, int64_t count) {
    Mixture out;
    const F rest = all(below[r]), over = all(inverse[r]), log = all(log_total[r]);
    const float one = alone[r], *values = e + at;
    float* to = far + at;
    const auto add = [&](F share, int64_t i) {
      const F value = load(values + i), minus_log = log - load(to + i);
      const F amount = plain ? share : (share * keep + spread) * load(weight + i);
      F raised = all(1.0f), slope = raised;
      if constexpr (kind != 0 || !plain) {
        const F p_c = value * over, left = ((1.0f - value) + rest) * over, product = p_c * minus_log;
        if constexpr (kind == 2) {
          raised = left * left;
          slope = left * (left + 2.0f * product);
        } else if constexpr (kind == 1) {
          raised = power(left, p_c, gamma);
          slope = raised * (1.0f + gamma.whole * pick(left == 0.0f, all(1.0f), product / left));
        }
        if constexpr (!plain) out.p += share * p_c;
      }
      const F slopes = amount * slope;
      out.loss += (amount * raised) * minus_log;
      out.power += share * raised;
      store(to + i, slopes);
      split(value, one, slopes, out.g, slopes, out.own);
    };
    int64_t i = 0;
    for (; i + W <= count; i += W) {
      __builtin_prefetch(q + i + soft_rows * count);
      add(load(q + i), i);
    }
    if (i < count) add(load_end(q + i, count - i, F{}), i);
    return out;
  }
  ZOO_INLINE Mixture mixed(const float* q, const float* weight, int64_t r, int64_t at, int64_t count) {
    if (gamma.whole == 2.0f) return simple ? mix<2, true>(q, weight, r, at, count) : mix<2, false>(q, weight, r, at, count);
    if (gamma.whole == 0.0f) return simple ? mix<0, true>(q, weight, r, at, count) : mix<0, false>(q, weight, r, at, count);
    return mix<1, false>(q, weight, r, at, count);
  }
  ZOO_INLINE Mixture mixture_of(const float* q, int64_t r, int64_t at, int64_t count) {
    Mixture out;
    for (int64_t i = 0; i < count; i += soft_run) {
      const Mixture run = mixed(q + i, w + i, r, at + i, count - i < soft_run ? count - i : soft_run);
      out.g += run.g, out.own += run.own, out.loss += run.loss, out.power += run.power, out.p += run.p;
    }
    return out;
  }

  // From the sums over classes: the factor of a row's exponentials, and the slope of the largest class.
  ZOO_INLINE void slopes(F sum_g, F own) {
    const F over = load(inverse), factor = all(float(call.factor));
    store(all_g, over * (sum_g + own) * factor);
    store(own_slope, (over * sum_g - own * (load(below) * over)) * factor);
  }

  // The gradient of a row's classes, a vector at a time.
  struct Slope {
    const float *e, *g;
    F all_g, factor, own;
    float one;
    ZOO_INLINE F operator()(int64_t i) const {
      const F value = load(e + i);
      return where_equal(value, one, own, value * all_g - load(g + i) * factor);
    }
  };
  ZOO_INLINE Slope slope_of_row(int64_t r, int64_t at) const {
    return {e + at, far + at, all(all_g[r]), all(float(call.factor)), all(own_slope[r]), alone[r]};
  }

  template <typename T>
  ZOO_INLINE void write_as(const Slope& slope, int64_t to, int64_t count) {
    auto* out = static_cast<typename T::Stored*>(p.grad) + to;
    int64_t i = 0;
    for (; i + W <= count; i += W) {
      __builtin_prefetch(out + i + soft_rows * count, 1);
      store_as<T>(out + i, slope(i));
    }
    if (i == count) return;
    store_end<T>(out + i, slope(i), count - i);
  }

  void gradient(int64_t r, int64_t at, int64_t first, int64_t to) {
    const int64_t count = part(first);
    const Slope slope = slope_of_row(r, at);
    if (p.grad_c != 1) {
      for (int64_t i = 0; i < count; i += W) {
        const F values = slope(i);
        for (int64_t k = 0; k < W && i + k < count; ++k) write(p.grad, p.type, to + (first + i + k) * p.grad_c, double(values[k]));
      }
    } else if (p.type == Type::f32) write_as<Single>(slope, to + first, count);
    else if (p.type == Type::bf16) write_as<Brain>(slope, to + first, count);
    else write_as<Half>(slope, to + first, count);
  }

  void run(int64_t begin, int64_t end, Sums& sums) {
    for (int64_t first = begin; first < end; first += step) {
      rows = end - first < step ? end - first : step;
      if (C > soft_floats) long_row(first, sums);
      else tile(first, sums);
    }
    sums.loss += sum(loss);
    sums.power += sum(modulation);
  }

  void tile(int64_t first, Sums& sums) {
    F one[W], other[W];
    const float *z[W], *q[W];
    for (int64_t r = 0; r < W; ++r) {
      one[r] = F{};
      skip[r] = r >= rows;
      if (skip[r]) continue;
      const Goal goal(p, first + r);
      skip[r] = goal.ignored;
      if (skip[r]) continue;
      q[r] = targets(goal, 0, shares + r * width);
      z[r] = logits(row_start(p, first + r), 0, far + r * width);
      one[r] = largest(z[r], C);
    }
    store(top, largest_of(one));
    sums_of_exponentials(z, q, one, other);
    totals(sums_of(one), sums_of(other));
    const bool each = p.loss_rows != nullptr || p.p_rows != nullptr;
    F losses{}, powers{};
    for (int64_t r = 0; r < W; ++r) {
      one[r] = other[r] = F{};
      if (skip[r]) continue;
      const Mixture mixture = mixture_of(q[r], r, r * width, C);
      losses += mixture.loss, powers += mixture.power, one[r] = mixture.g, other[r] = mixture.own;
      if (each) write_sums(first + r, double(sum(mixture.loss)), double(sum(mixture.p)));
    }
    loss += __builtin_convertvector(losses, D), modulation += __builtin_convertvector(powers, D);
    slopes(sums_of(one), sums_of(other));
    for (int64_t r = 0; r < rows; ++r) {
      if (skip[r]) exact_row(call, first + r, sums);
      else if (p.grad != nullptr) gradient(r, r * width, 0, grad_start(p, first + r));
    }
  }

  ZOO_INLINE void sums_of_exponentials(const float* const* z, const float* const* q, F* below_top, F* ties) {
    Guard guard;
    for (int64_t r = 0; r < W; ++r) {
      F sum{}, count{};
      if (skip[r]) count[0] = 1;
      else exponentials_of<false>(z[r], far + r * width, e + r * width, C, top[r], sum, count, guard);
      below_top[r] = sum, ties[r] = count;
    }
    if (guard.holds()) return;
    for (int64_t r = 0; r < W; ++r) {  // z - top is in its buffer now
      if (skip[r]) continue;
      float* apart = far + r * width;
      below_top[r] = ties[r] = F{};
      skip[r] = !exponentials_of<true>(apart, apart, e + r * width, C, 0, below_top[r], ties[r], guard) && beyond(apart, q[r], w, C);
    }
  }

  void write_sums(int64_t row, double row_loss, double prob) const {
    write_row(p.loss_rows, p, row, row_loss * call.factor);
    write_row(p.p_rows, p, row, prob);
  }

  bool part_exponentials(int64_t start, int64_t first, F& below_top, F& ties) {
    Guard guard;
    return exponentials_of<true>(logits(start, first, far), far, e, part(first), top[0], below_top, ties, guard);
  }

  Mixture part_of(const Goal& goal, int64_t start, int64_t first) {
    F ignored{}, also_ignored{};
    part_exponentials(start, first, ignored, also_ignored);
    weights(first);
    return mixture_of(targets(goal, first, shares), 0, 0, part(first));
  }

  // A row in parts; sums of floats within a part, of doubles over them.
  void long_row(int64_t r, Sums& sums) {
    const Goal goal(p, r);
    const int64_t start = row_start(p, r);
    if (goal.ignored) return exact_row(call, r, sums);
    F high[W]{};
    for (int64_t first = 0; first < C; first += soft_floats) {
      const F found = largest(logits(start, first, far), part(first));
      high[0] = first == 0 ? found : larger(found, high[0]);
    }
    top[0] = largest_of(high)[0];
    double below_top = 0, ties = 0;
    for (int64_t first = 0; first < C; first += soft_floats) {
      F part_below{}, part_ties{};
      if (!part_exponentials(start, first, part_below, part_ties)) {
        weights(first);
        if (beyond(far, targets(goal, first, shares), w, part(first))) return exact_row(call, r, sums);
      }
      below_top += double(sum(part_below)), ties += double(sum(part_ties));
    }
    totals(all(float(below_top)), all(float(ties)));
    double parts[5] = {};  // as in Mixture
    for (int64_t first = 0; first < C; first += soft_floats) {
      const Mixture mixture = part_of(goal, start, first);
      const F* each[] = {&mixture.g, &mixture.own, &mixture.loss, &mixture.power, &mixture.p};
      for (int i = 0; i < 5; ++i) parts[i] += double(sum(*each[i]));
    }
    loss[0] += parts[2], modulation[0] += parts[3];
    write_sums(r, parts[2], parts[4]);
    slopes(all(float(parts[0])), all(float(parts[1])));
    for (int64_t first = 0; p.grad != nullptr && first < C; first += soft_floats) {
      part_of(goal, start, first);
      gradient(0, 0, first, grad_start(p, r));
    }
  }
};

}  // namespace ZOO_ISA
}  // namespace
}  // namespace zoo
