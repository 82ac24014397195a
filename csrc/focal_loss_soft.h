// Rows in which several classes have a share (label smoothing, two labels, shares in memory), in vectors of ZOO_W floats;
// included once for each instruction set by focal_loss_simd.h.
//
// l = -sum_c a_c (1 - p_c)^gamma log p_c with a_c = w_c q_c; with g_c = a_c slope_c (see slope_of) and G their sum,
// d l / d z_j = p_j (G - g_j) - g_j (1 - p_j). exp is taken from the row's maximum, so that log p_c = (z_c - top) - log(total)
// needs no logarithm for each class. The largest class, the only one with p > 1/2, gets 1 - p and log p from the others' sum
// (see rows_of); of the others 1 - p >= 1/2, which a subtraction gives to the last bits.

namespace zoo {
namespace {
namespace ZOO_ISA {

constexpr int64_t soft_floats = 4096;  // of each buffer; longer rows go through them in parts, once for each pass
constexpr int64_t soft_run = 64 * W;   // so many terms, a vector of them at a time, are added up in float
constexpr float soft_reach = 1e4f;     // logits beyond that are left to exact_row
constexpr float beyond = -2e4f;        // stands for logits past a row's end

template <typename T>
struct Soft {
  using Stored = typename T::Stored;
  const Call& call;
  const Problem& p;
  const int64_t C;
  const Gamma gamma;
  const float keep, spread;  // q becomes keep q + spread
  D loss{}, modulation{};
  // Of the row at hand:
  int64_t ties, best;        // classes with the largest logit, and one of them
  float top, inverse, log_total;
  alignas(64) float far[soft_floats + W];  // z, then z - top
  alignas(64) float e[soft_floats + W];
  alignas(64) float q[soft_floats + W];
  alignas(64) float a[soft_floats + W];    // amounts, then g
  alignas(64) float w[soft_floats + W];    // weights, 0 past the end

  explicit Soft(const Call& c)
      : call(c), p(c.problem), C(c.problem.classes), gamma(c.problem.gamma), keep(float(1 - c.problem.smoothing)),
        spread(float(c.problem.smoothing / double(c.problem.classes))) {
    weights(0);
  }

  static int64_t whole(int64_t count) { return (count + W - 1) / W * W; }
  int64_t part(int64_t first) const { return C - first < soft_floats ? C - first : soft_floats; }

  // `count` elements of a strided array as floats, then `fill` up to a whole vector.
  template <typename S>
  ZOO_INLINE static void fetch(const void* data, int64_t from, int64_t step, int64_t count, float fill, float* to) {
    const auto* values = static_cast<const typename S::Stored*>(data) + from;
    int64_t i = 0;
    if (step == 1) {
      for (; i + W <= count; i += W) store(to + i, load_as<S>(values + i));
      if (i < count) store(to + i, load_end<S>(values + i, count - i, fill));
      return;
    }
    for (; i < count; ++i) {
      if constexpr (std::is_same_v<S, Single>) to[i] = values[i * step];
      else to[i] = from_half(values[i * step], std::is_same_v<S, Brain>);
    }
    for (; i % W != 0; ++i) to[i] = fill;
  }

  // load_part and store_part, without the detour through memory where one instruction does it.
  template <typename S>
  ZOO_INLINE static F load_end(const typename S::Stored* from, int64_t count, float fill) {
#if ZOO_W == 16
    if constexpr (std::is_same_v<S, Single>) return (F)_mm512_mask_loadu_ps((__m512)all(fill), __mmask16((1u << count) - 1), from);
#endif
    return load_part<S>(from, count, fill);
  }
  ZOO_INLINE static void store_end(Stored* to, F value, int64_t count) {
#if ZOO_W == 16
    if constexpr (std::is_same_v<T, Single>) return _mm512_mask_storeu_ps(to, __mmask16((1u << count) - 1), (__m512)value);
#endif
    store_part<T>(to, value, count);
  }

  ZOO_INLINE static double total_of(D value) {
#if ZOO_W == 16
    __m512d halves[2];
    std::memcpy(halves, &value, sizeof halves);
    return _mm512_reduce_add_pd(_mm512_add_pd(halves[0], halves[1]));
#else
    return sum(value);
#endif
  }

  // A bit for each lane of a mask.
  ZOO_INLINE static uint32_t lanes_of(I mask) {
#if ZOO_W == 16
    return uint32_t(_mm512_movepi32_mask((__m512i)mask));
#elif ZOO_W == 8
    return uint32_t(_mm256_movemask_ps((__m256)mask));
#else
    uint32_t out = 0;
    for (int i = 0; i < W; ++i) out |= uint32_t(mask[i] != 0) << i;
    return out;
#endif
  }

  void fetch_logits(int64_t start, int64_t first) {
    fetch<T>(p.logits, start + first * p.stride_c, p.stride_c, part(first), beyond, far);
  }

  // Shares and amounts of a part's classes.
  void targets(const Goal& goal, int64_t first) {
    const int64_t count = part(first);
    if (p.shares != nullptr) {
      const int64_t from = goal.start + first * p.shares_c;
      if (p.shares_type == Type::f32) fetch<Single>(p.shares, from, p.shares_c, count, 0, q);
      else fetch<T>(p.shares, from, p.shares_c, count, 0, q);
    } else {
      for (int64_t i = 0; i < count; i += W) store(q + i, F{});
      const auto put = [&](int64_t label, double share) {
        if (label >= first && label < first + count) q[label - first] = float(share);
      };
      put(goal.other, 1 - goal.share);
      put(goal.label, goal.label == goal.other ? 1.0 : goal.share);
    }
    if (C > soft_floats) weights(first);
    for (int64_t i = 0; i < count; i += W) store(a + i, (load(q + i) * keep + spread) * load(w + i));
  }

  void weights(int64_t first) {
    const int64_t count = part(first);
    if (p.weight != nullptr) return fetch<Single>(p.weight, first, 1, count, 0, w);
    for (int64_t i = 0; i < whole(count); ++i) w[i] = i < count ? 1.0f : 0.0f;
  }

  // Raises `top` to the largest logit of a part; false if one of them is NaN or beyond reach.
  ZOO_INLINE bool raise(int64_t count) {
    F high = all(beyond);
    I size{};
    for (int64_t i = 0; i < count; i += W) {
      const F z = load(far + i);
      const I without_sign = bits(z) & 0x7fffffff;
      high = pick(z > high, z, high);
      size = without_sign > size ? without_sign : size;
    }
#if ZOO_W == 16
    const float most = _mm512_reduce_max_ps((__m512)high);
    top = most > top ? most : top;
#else
    for (int i = 0; i < W; ++i) top = high[i] > top ? high[i] : top;
#endif
    return !any(size > bits(all(-beyond)));
  }

  // exp of a part; the sum of those below the largest.
  ZOO_INLINE double exponentials(int64_t first) {
    const int64_t count = part(first);
    D all_of{};
    F sum{};
    for (int64_t i = 0; i < count; i += W) {
      if (i % soft_run == 0) all_of += __builtin_convertvector(sum, D), sum = F{};
      const F distance = load(far + i) - top;
      const F value = exp_of<true>(pick(distance < -300.0f, all(-300.0f), distance), 0.0f);
      const I largest = distance == 0.0f;
      store(far + i, distance);
      store(e + i, value);
      sum += pick(largest, F{}, value);
      if (const uint32_t found = lanes_of(largest)) {
        best = first + i + __builtin_ctz(found);
        ties += __builtin_popcount(found);
      }
    }
    return total_of(all_of + __builtin_convertvector(sum, D));
  }

  // What the row's classes add up to, the largest one left out where it is alone; g goes into `a`.
  struct Total {
    D loss{}, g{}, power{}, prob{};
  };
  ZOO_INLINE void add(int64_t first, Total& total) {
    const int64_t count = part(first), skip = ties == 1 ? best - first : -1;
    if (skip >= 0 && skip < count) a[skip] = q[skip] = 0;
    for (int64_t run = 0; run < count; run += soft_run) {
      F losses{}, sum_g{}, powers{}, prob{};
      for (int64_t i = run; i < count && i < run + soft_run; i += W) {
        const F p_c = load(e + i) * inverse, left = 1.0f - p_c, minus_log = log_total - load(far + i), product = p_c * minus_log;
        const F q_c = pick(left < 0.25f, all(0.25f), left);  // of the class left out; it would divide by 0
        F raised = all(1.0f), slope = raised;
        if (gamma.whole == 2.0f) {
          raised = q_c * q_c;
          slope = raised + 2.0f * q_c * product;
        } else if (gamma.whole != 0.0f) {
          raised = power(q_c, p_c, gamma);
          slope = raised * (1.0f + gamma.whole * (product / q_c));
        }
        const F amount = load(a + i), share = load(q + i), g = amount * slope;
        losses += amount * (raised * minus_log);
        sum_g += g;
        powers += share * raised;
        prob += share * p_c;
        store(a + i, g);
      }
      total.loss += __builtin_convertvector(losses, D);
      total.g += __builtin_convertvector(sum_g, D);
      total.power += __builtin_convertvector(powers, D);
      total.prob += __builtin_convertvector(prob, D);
    }
  }

  ZOO_INLINE void gradient(int64_t first, int64_t to, float sum_g) {
    const int64_t count = part(first);
    const float factor = float(call.factor);
    Stored* out = static_cast<Stored*>(p.grad) + to + first * p.grad_c;
    for (int64_t i = 0; i < count; i += W) {
      const F p_c = load(e + i) * inverse, g = load(a + i);
      const F slope = (p_c * (sum_g - g) - g * (1.0f - p_c)) * factor;
      if (p.grad_c != 1)
        for (int64_t k = 0; k < W && i + k < count; ++k) write(p.grad, p.type, to + (first + i + k) * p.grad_c, double(slope[k]));
      else if (i + W <= count) store_as<T>(out + i, slope);
      else store_end(out + i, slope, count - i);
    }
  }

  void run(int64_t begin, int64_t end, Sums& sums) {
    for (int64_t r = begin; r < end; ++r) row(r, sums);
    sums.loss += total_of(loss);
    sums.power += total_of(modulation);
  }

  void row(int64_t r, Sums& sums) {
    const Goal goal(p, r);
    const int64_t start = row_start(p, r), to = grad_start(p, r);
    const bool once = C <= soft_floats;  // the row stays in the buffers
    bool fine = !goal.ignored;
    top = beyond;
    for (int64_t first = 0; fine && first < C; first += soft_floats) {
      fetch_logits(start, first);
      fine = raise(part(first)) && top >= -soft_reach;
    }
    if (!fine) return exact_row(call, r, sums);
    double below = 0;
    ties = best = 0;
    for (int64_t first = 0; first < C; first += soft_floats) {
      if (!once) fetch_logits(start, first);
      below += exponentials(first);
    }
    const F e_all = all(float(double(ties) + below));
    const Log log = log_of(e_all, all(1.0f));
    log_total = log.k[0] * 0.693147182f + log.log_m[0];
    inverse = 1.0f / e_all[0];
    const bool alone = ties == 1;
    Total total;
    double amount = 0, share = 0;
    for (int64_t first = 0; first < C; first += soft_floats) {
      if (!once) fetch_logits(start, first), exponentials(first), ties = alone ? 1 : 2;
      targets(goal, first);
      if (alone && best >= first && best < first + part(first)) amount = double(a[best - first]), share = double(q[best - first]);
      add(first, total);
    }
    double own_g = 0;
    if (alone) {
      const Rows mine = rows_of(all(1.0f), all(float(below)), F{}, false, gamma);
      own_g = amount * double(mine.slope_over_total[0]) * double(e_all[0]);
      total.loss[0] += amount * double(mine.loss[0]);
      total.g[0] += own_g;
      total.power[0] += share * double(mine.power[0]);
      total.prob[0] += share * double(mine.p[0]);
    }
    loss += total.loss;
    modulation += total.power;
    if (p.loss_rows != nullptr) write_row(p.loss_rows, p, r, total_of(total.loss) * call.factor);
    if (p.p_rows != nullptr) write_row(p.p_rows, p, r, total_of(total.prob));
    const double sum_g = total_of(total.g);
    if (p.grad == nullptr) return;
    for (int64_t first = 0; first < C; first += soft_floats) {
      if (!once) {
        Total again;
        fetch_logits(start, first), exponentials(first), ties = alone ? 1 : 2;
        targets(goal, first);
        add(first, again);
      }
      gradient(first, to, float(sum_g));
    }
    if (alone) {
      const double p_c = 1 / (1 + below), q_c = below / (1 + below);
      write(p.grad, p.type, to + best * p.grad_c, (p_c * (sum_g - own_g) - own_g * q_c) * call.factor);
    }
  }
};

}  // namespace ZOO_ISA
}  // namespace
}  // namespace zoo
