// The focal loss of a block of rows in vectors of ZOO_W floats; included once for each instruction set, inside its target
// pragma, with ZOO_ISA as the name of its namespace.
//
// A block is divided into tiles that stay in the L1 cache. exp runs over a tile in memory order for any C; then come the row
// sums, then the logarithms and powers of ZOO_W rows at a time, then one multiplication over the tile. While no logit
// of the tile exceeds a guard (+-30, +-44.3 in AVX-512), exp needs no maximum: C exp(44) and exp(-44) are far from
// the limits of float. Otherwise each row is scaled by a power of two near its largest exp, which is exact.
#include "focal_loss_vector.h"

#include "focal_loss_soft.h"

namespace zoo {
namespace {
namespace ZOO_ISA {

constexpr int64_t tile_floats = 4096;        // 16 KB of exponentials, well within an L1 cache
constexpr int64_t most_rows = 256;           // in a tile
constexpr int64_t long_row = 1024;           // number of classes from which exponentials are not kept
constexpr int64_t room = W * long_row + 64;  // most floats in a tile, plus what vectors may access beyond it
constexpr float reach = 11000.0f;            // rows with a larger maximum are computed by exact_row

// Data of a tile besides its exponentials, one number per row.
struct Tile {
  int64_t first, rows;               // rows [first, first + rows) of the call
  alignas(64) int32_t at[most_rows + W];   // position of the label's exponential in the tile
  alignas(64) float used[most_rows + W];   // 1, or 0 for ignored rows and those done by exact_row
  alignas(64) float weight[most_rows + W];
  alignas(64) float e[most_rows + W];      // the label's exponential
  alignas(64) float far[most_rows + W];    // k log 2 - z_t of a scaled tile
  alignas(64) float slope[most_rows + W];  // multiplies a row's exponentials
  bool exact[most_rows + W];
  bool scaled, any_exact;
  alignas(64) float values[room];
};

template <typename T>
struct Block {
  using Stored = typename T::Stored;
  const Call& call;
  const Problem& p;
  const int64_t C;
  const Gamma gamma;
  const bool flat_in, flat_out;  // rows are contiguous
  const bool stream;             // the gradient is larger than the caches and bypasses them
  D loss{}, modulation{};
  Tile tile;
  I row_of_lane[33];
  I lane;

  explicit Block(const Call& c)
      : call(c), p(c.problem), C(c.problem.classes), gamma(c.problem.gamma),
        flat_in(p.inner == 1 && (p.stride_c == 1 || C == 1) && p.stride_n == C),
        flat_out(p.grad != nullptr && p.inner == 1 && (p.grad_c == 1 || C == 1) && p.grad_n == C),
        stream(ZOO_W >= 8 && std::is_same_v<T, Single> && flat_out && c.rows * C >= stream_from &&
               reinterpret_cast<uintptr_t>(p.grad) % (4 * W) == 0) {
    for (int i = 0; i < W; ++i) lane[i] = i;
    if (C > 32) return;
    for (int64_t k = 0; k < C; ++k)  // W rows are C vectors; (i * m) >> 16 is i / C for i < 512
      for (int i = 0; i < W; ++i) row_of_lane[k][i] = int32_t((k * W + i) * (65536 / C + 1) >> 16);
  }

  ZOO_INLINE const Stored* logits(int64_t at) const { return static_cast<const Stored*>(p.logits) + at; }
  ZOO_INLINE Stored* grad(int64_t at) const { return static_cast<Stored*>(p.grad) + at; }

  ZOO_INLINE float one(int64_t at) const { return float(read(p.logits, p.type, at)); }

  // Without branches and for one label type, so that the compiler vectorises it.
  template <typename L>
  ZOO_INLINE void labels_of(const L* labels) {
    const float* weights = static_cast<const float*>(p.weight);
    const int64_t ignored = p.ignore_index;
    const int32_t rows = int32_t(tile.rows), classes = int32_t(C);
    for (int32_t r = 0; r < rows; ++r) {
      const bool used = labels[r] != ignored;
      tile.at[r] = r * classes + (used ? int32_t(labels[r]) : 0);
      tile.used[r] = used ? 1.0f : 0.0f;
    }
    if (weights == nullptr) {
      for (int32_t r = 0; r < rows; ++r) tile.weight[r] = tile.used[r];
#if ZOO_W == 16
    } else if (C <= 32) {  // a table in two registers: a gather would cost as much as the tile's exponentials
      const __m512 low = _mm512_maskz_loadu_ps(__mmask16((int64_t(1) << C) - 1), weights);
      const __m512 high = _mm512_maskz_loadu_ps(__mmask16(((int64_t(1) << C) - 1) >> 16), weights + 16);
      I start = lane * classes;
      for (int32_t r = 0; r < rows; r += W, start += W * classes) {
        I at;
        std::memcpy(&at, tile.at + r, sizeof at);
        const F weight = (F)_mm512_permutex2var_ps(low, (__m512i)(at - start), high);
        store(tile.weight + r, pick(load(tile.used + r) != 0.0f, weight, F{}));
      }
#endif
    } else {
      for (int32_t r = 0; r < rows; ++r) {
        const float weight = weights[tile.at[r] - r * classes];
        tile.weight[r] = tile.used[r] != 0.0f ? weight : 0.0f;
      }
    }
  }

  void labels() {
    if (p.inner != 1 || p.target_n != 1) {
      int64_t gathered[most_rows];
      for (int64_t r = 0; r < tile.rows; ++r) gathered[r] = label_at(p, tile.first + r);
      labels_of(gathered);
    } else if (p.label == Label::i64) {
      labels_of(static_cast<const int64_t*>(p.target) + tile.first);
    } else if (p.label == Label::i32) {
      labels_of(static_cast<const int32_t*>(p.target) + tile.first);
    } else {
      labels_of(static_cast<const uint8_t*>(p.target) + tile.first);
    }
    tile.any_exact = false;
    for (int64_t r = tile.rows; r % W != 0; ++r) {  // fills the last group
      tile.at[r] = int32_t(r * C);
      tile.used[r] = tile.weight[r] = 0;
    }
  }

  // exp of the whole tile without a maximum; false if a logit is beyond the guard.
  bool plain_exp() {
    const int64_t count = tile.rows * C, padded = (tile.rows + W - 1) / W * W * C;
    Guard guard;
    if (flat_in) {
      const Stored* from = logits(tile.first * C);
      int64_t i = 0;
      for (; i + W <= count; i += W) {
        __builtin_prefetch(from + count + i);  // of the next tile: memory is read while exp is computed, and written afterwards
        store(tile.values + i, guard.exp(load_as<T>(from + i)));
      }
      if (i < count) store(tile.values + i, guard.exp(load_part<T>(from + i, count - i, 0)));
    } else {
      gather();
      for (int64_t i = 0; i < count; i += W) store(tile.values + i, guard.exp(load(tile.values + i)));
    }
    for (int64_t i = count; i < padded; ++i) tile.values[i] = 1;
    return guard.holds();
  }

  void gather() {
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t from = row_start(p, tile.first + r);
      for (int64_t c = 0; c < C; ++c) tile.values[r * C + c] = one(from + c * p.stride_c);
    }
    for (int i = 0; i < W; ++i) tile.values[tile.rows * C + i] = 0;
  }

  // Puts a row's logits into `row`, in whole vectors, of which the last may extend beyond it; the largest, or NaN if any is NaN.
  ZOO_INLINE float row_of(int64_t from, float* row) const {
    constexpr float least = -std::numeric_limits<float>::infinity();
    F top = all(least);
    I broken{};
    for (int64_t c = 0; c < C; c += W) {
      F z = all(least);
      if (p.stride_c != 1)
        for (int64_t k = 0; k < W && c + k < C; ++k) z[k] = one(from + (c + k) * p.stride_c);
      else z = c + W <= C ? load_as<T>(logits(from + c)) : load_part<T>(logits(from + c), C - c, least);
      store(row + c, z);
      top = larger(z, top);
      broken |= z != z;
    }
    return highest(top, broken);
  }

  // exp of each row times 2^-k, k near log2 of its maximum.
  void scaled_exp() {
    for (int64_t r = 0; r < tile.rows; ++r) {
      float* row = tile.values + r * C;
      const float top = row_of(row_start(p, tile.first + r), row);
      tile.exact[r] = !(top <= reach && top >= -reach);
      tile.any_exact |= tile.exact[r];
      const float label = row[tile.at[r] - r * C];
      const float k = tile.exact[r] ? 0.0f : std::nearbyint(top * 1.44269504f);
      tile.far[r] = float(double(k) * 0.6931471805599453 - double(label));
      const F floor = all(top - 300.0f);
      for (int64_t c = 0; c < C; c += W) {
        const F z = load(row + c);
        store(row + c, tile.exact[r] ? all(1.0f) : exp_of<true>(pick(z < floor, floor, z), k));
      }
      if (tile.exact[r]) tile.used[r] = tile.weight[r] = 0;
    }
    for (int64_t i = tile.rows * C; i < (tile.rows + W - 1) / W * W * C; ++i) tile.values[i] = 1;
  }

  ZOO_INLINE F row_sums(int64_t first) const {
    F parts[W];
    const int64_t tail = C % W, full = C - tail;
    I mask{};
    for (int i = 0; i < W; ++i) mask[i] = i < tail ? -1 : 0;
    for (int i = 0; i < W; ++i) {
      const float* row = tile.values + (first + i) * C;
      F part = floats(bits(load(row + full)) & mask);
      for (int64_t c = 0; c < full; c += W) part += load(row + c);
      parts[i] = part;
    }
    return sums_of(parts);
  }

  void losses() {
    const float factor = float(call.factor);
    for (int64_t r = 0; r < tile.rows; ++r) {
      tile.e[r] = tile.values[tile.at[r]];
      tile.values[tile.at[r]] = 0;
    }
    for (int64_t r = tile.rows; r % W != 0; ++r) tile.e[r] = 1;
    F tile_loss{}, tile_power{};  // at most most_rows / W terms per lane: float suffices, and saves conversions
    for (int64_t r = 0; r < tile.rows; r += W) {
      const F others = row_sums(r);
      const F used = load(tile.used + r), weight = load(tile.weight + r);
      const Rows rows = rows_of(load(tile.e + r), others, load(tile.far + r), tile.scaled, gamma);
      const F weighted = pick(weight != 0.0f, rows.loss * weight, F{});
      tile_loss += weighted;
      tile_power += rows.power * used;
      store(tile.slope + r, rows.slope_over_total * weight * factor);
      const int64_t count = tile.rows - r < W ? tile.rows - r : W;
      if (p.loss_rows != nullptr) store_part<Single>(static_cast<float*>(p.loss_rows) + tile.first + r, weighted * factor, count);
      if (p.p_rows != nullptr)
        store_part<Single>(static_cast<float*>(p.p_rows) + tile.first + r, pick(used != 0.0f, rows.p, all(1.0f)), count);
      if (p.grad != nullptr)  // the label's gradient is -slope others: store -others in place of its exponential
      {
        float negative[W];
        store(negative, -others);
        for (int64_t i = 0; i < count; ++i) tile.values[tile.at[r + i]] = negative[i];
      }
    }
    loss += __builtin_convertvector(tile_loss, D);
    modulation += __builtin_convertvector(tile_power, D);
  }

  void gradients() {
    if (!flat_out) return scatter();
    Stored* to = grad(tile.first * C);
#if ZOO_W >= 8
    if constexpr (std::is_same_v<T, Single>)
      if (stream) return C <= 32 ? flat_gradients<true>(to) : long_gradients<true>(to);
    return C <= 32 ? flat_gradients<false>(to) : long_gradients<false>(to);
#else
    for (int64_t r = 0; r < tile.rows; ++r) {
      const F slope = all(tile.slope[r]);
      const float* from = tile.values + r * C;
      int64_t c = 0;
      for (; c + W <= C; c += W) store_as<T>(to + r * C + c, load(from + c) * slope);
      if (c == C) continue;
      if (C >= W) store_as<T>(to + r * C + C - W, load(from + C - W) * slope);  // overlaps the previous store
      else store_part<T>(to + r * C, load(from) * slope, C);
    }
#endif
  }

#if ZOO_W >= 8
  // Whole vectors for any C: a tile's first element is aligned, as it starts at a multiple of W rows, and stores across
  // cache lines cost twice as much.
  template <bool streaming>
  void long_gradients(Stored* to) {
    const int64_t count = tile.rows * C;
    int64_t i = 0;
    const auto put = [&](F slope) {
      const F value = load(tile.values + i) * slope;
      if constexpr (streaming) past_caches(to + i, value);
      else store_as<T>(to + i, value);
      i += W;
    };
    for (int64_t r = 0, edge = C; r < tile.rows; ++r, edge += C) {
      const F slope = all(tile.slope[r]);
      while (i + W <= edge) put(slope);
      if (i >= edge) continue;
      const F both = pick(lane < int32_t(edge - i), slope, all(tile.slope[r + 1]));  // of this row and the next
      if (i + W <= count) put(both);
      else store_part<T>(to + i, load(tile.values + i) * both, count - i);
    }
  }

  template <bool streaming>
  void flat_gradients(Stored* to) {
    const int64_t count = tile.rows * C;
    for (int64_t r = 0, at = 0; r < tile.rows; r += W) {
      const F slopes = load(tile.slope + r);
      for (int64_t k = 0; k < C; ++k, at += W) {
        const F value = load(tile.values + at) * spread(slopes, row_of_lane[k]);
        if (at + W <= count) {
          if constexpr (streaming) past_caches(to + at, value);
          else store_as<T>(to + at, value);
        } else if (at < count) store_part<T>(to + at, value, count - at);
      }
    }
  }

  ZOO_INLINE static F spread(F values, I lanes) {
#if ZOO_W == 16
    return (F)_mm512_permutexvar_ps((__m512i)lanes, (__m512)values);
#else
    return (F)_mm256_permutevar8x32_ps((__m256)values, (__m256i)lanes);
#endif
  }
#endif

  void scatter() {
    for (int64_t r = 0; r < tile.rows; ++r) {
      const int64_t to = grad_start(p, tile.first + r);
      for (int64_t c = 0; c < C; ++c) write(p.grad, p.type, to + c * p.grad_c, tile.values[r * C + c] * tile.slope[r]);
    }
  }

  void run(int64_t begin, int64_t end, Sums& sums) {
    int64_t step = tile_floats / C / W * W;
    step = step < W ? W : step > most_rows ? most_rows : step;
    for (tile.first = begin; tile.first < end; tile.first += step) {
      tile.rows = end - tile.first < step ? end - tile.first : step;
      labels();
      tile.scaled = !plain_exp();
      if (tile.scaled) scaled_exp();
      if (tile.any_exact && p.grad == p.logits) {  // the tile's gradients would overwrite what exact_row has to read
        for (int64_t r = 0; r < tile.rows; ++r) exact_row(call, tile.first + r, sums);
        continue;
      }
      losses();
      if (p.grad != nullptr) gradients();
      if (tile.any_exact)
        for (int64_t r = 0; r < tile.rows; ++r)
          if (tile.exact[r]) exact_row(call, tile.first + r, sums);
    }
#if ZOO_W >= 8
    if (stream) _mm_sfence();
#endif
    sums.loss += sum(loss);
    sums.power += sum(modulation);
  }
};

// A row that is too long for a tile: one pass for the sum and one for the gradient, with exp computed in both, preceded by a
// pass for the maximum if a logit is beyond the guard.
template <typename T>
struct Long {
  using Stored = typename T::Stored;
  const Call& call;
  const Problem& p;
  const Gamma gamma;

  explicit Long(const Call& c) : call(c), p(c.problem), gamma(c.problem.gamma) {}

  // Sum of exp over [0, count), checked by the guard unless scaled.
  template <bool scaled>
  double sum_of(const Stored* from, int64_t count, float top, float k, Guard& guard) const {
    constexpr int64_t run = 64 * W;  // number of terms summed in float
    const F floor = all(top - 300.0f);
    D total{};
    for (int64_t start = 0; start < count; start += run) {
      const int64_t end = count - start < run ? count : start + run;
      F part{};
      for (int64_t i = start; i < end; i += W) {
        const bool whole = i + W <= end;
        const F z = whole ? load_as<T>(from + i) : load_part<T>(from + i, end - i, scaled ? top - 300.0f : 0.0f);
        F e;
        if constexpr (scaled) e = exp_of<true>(pick(z < floor, floor, z), k);
        else e = guard.exp(z);
        if (!whole)
          for (int64_t lane = end - i; lane < W; ++lane) e[lane] = 0;
        part += e;
      }
      total += __builtin_convertvector(part, D);
    }
    return sum(total);
  }

  template <bool scaled>
  void gradient(const Stored* from, Stored* to, float slope, float top, float k) const {
    const F floor = all(top - 300.0f);
    for (int64_t i = 0; i < p.classes; i += W) {
      const bool whole = i + W <= p.classes;
      F z = whole ? load_as<T>(from + i) : load_part<T>(from + i, p.classes - i, top);
      if constexpr (scaled) z = pick(z < floor, floor, z);
      const F value = exp_of<scaled>(z, k) * slope;
      if (whole) store_as<T>(to + i, value);
      else store_part<T>(to + i, value, p.classes - i);
    }
  }

  // The largest logit; NaN if any is NaN.
  float largest(const Stored* from) const {
    F top = all(-std::numeric_limits<float>::infinity());
    I broken{};
    for (int64_t i = 0; i < p.classes; i += W) {
      const F z = i + W <= p.classes ? load_as<T>(from + i) : load_part<T>(from + i, p.classes - i, -std::numeric_limits<float>::infinity());
      top = pick(z > top, z, top);
      broken |= z != z;
    }
    return highest(top, broken);
  }

  void row(int64_t r, Sums& sums) const {
    const int64_t label = label_at(p, r);
    const Stored* from = static_cast<const Stored*>(p.logits) + row_start(p, r);
    if (label == p.ignore_index) return exact_row(call, r, sums);
    const F z = load_part<T>(from + label, 1, 0);
    Guard guard;
    F e = guard.exp(z);
    float top = 0, k = 0;
    const int64_t after = p.classes - label - 1;
    double others = sum_of<false>(from, label, top, k, guard) + sum_of<false>(from + label + 1, after, top, k, guard);
    const bool scaled = !guard.holds();
    if (scaled) {
      top = largest(from);
      if (!(top <= reach && top >= -reach)) return exact_row(call, r, sums);
      k = std::nearbyint(top * 1.44269504f);
      others = sum_of<true>(from, label, top, k, guard) + sum_of<true>(from + label + 1, after, top, k, guard);
      e = exp_of<true>(pick(z < all(top - 300.0f), all(top - 300.0f), z), k);
    }
    const F far = all(float(double(k) * 0.6931471805599453 - double(z[0])));
    const Rows rows = rows_of(e, all(float(others)), far, scaled, gamma);
    const double weight = weight_of(p, label);
    const double loss = weight == 0 ? 0 : double(rows.loss[0]) * weight;
    sums.loss += loss;
    sums.power += double(rows.power[0]);
    write_row(p.loss_rows, p, r, loss * call.factor);
    write_row(p.p_rows, p, r, double(rows.p[0]));
    if (p.grad == nullptr) return;
    const float slope = rows.slope_over_total[0] * float(weight) * float(call.factor);
    Stored* to = static_cast<Stored*>(p.grad) + grad_start(p, r);
    if (scaled) gradient<true>(from, to, slope, top, k);
    else gradient<false>(from, to, slope, 0, 0);
    store_part<T>(to + label, all(-slope * float(others)), 1);
  }
};

template <typename T>
inline void typed(const Call& call, int64_t begin, int64_t end, Sums& sums) {
  if (call.problem.classes < long_row) return Block<T>(call).run(begin, end, sums);
  const Long<T> rows(call);
  for (int64_t r = begin; r < end; ++r) rows.row(r, sums);
}

// Rows that are not ignored; `wrong` if a label is out of range.
template <typename L>
inline int64_t tally(const L* labels, int64_t n, int64_t classes, int64_t ignored, bool& wrong) {
  int64_t count = 0, bad = 0;
  for (int64_t r = 0; r < n; ++r) {
    const int64_t label = labels[r], used = label != ignored;
    count += used;
    bad |= used & int64_t(uint64_t(label) >= uint64_t(classes));
  }
  wrong = bad != 0;
  return count;
}

// As scan(), but fast for dense labels.
inline void scan_block(const Call& call, int64_t begin, int64_t end, Sums& sums) {
  const Problem& p = call.problem;
  if (p.shares != nullptr) return void(sums = Sums{double(end - begin), double(end - begin), -1, 0, 0, 0});
  if (p.inner != 1 || p.target_n != 1 || p.other != nullptr || p.reduction == Reduction::weighted_mean) return scan(call, begin, end, sums);
  bool wrong = false;
  const int64_t n = end - begin;
  const int64_t count = p.label == Label::i64   ? tally(static_cast<const int64_t*>(p.target) + begin, n, p.classes, p.ignore_index, wrong)
                        : p.label == Label::i32 ? tally(static_cast<const int32_t*>(p.target) + begin, n, p.classes, p.ignore_index, wrong)
                                                : tally(static_cast<const uint8_t*>(p.target) + begin, n, p.classes, p.ignore_index, wrong);
  if (wrong) return scan(call, begin, end, sums);  // finds which one
  sums = Sums{double(count), 0, -1, 0, 0, 0};
}

inline void block(const Call& call, int64_t begin, int64_t end, Sums& sums) {
  const Problem& p = call.problem;
  const bool strided = p.stride_c != 1 || (p.grad != nullptr && p.grad_c != 1);
  if (is_soft(p) && p.type != Type::f64) {
    Soft(call).run(begin, end, sums);
  } else if (p.type == Type::f64 || (p.classes >= long_row && strided)) {
    for (int64_t row = begin; row < end; ++row) exact_row(call, row, sums);
  } else if (p.type == Type::f32) {
    typed<Single>(call, begin, end, sums);
  } else if (p.type == Type::bf16) {
    typed<Brain>(call, begin, end, sums);
  } else {
    typed<Half>(call, begin, end, sums);
  }
}

}  // namespace ZOO_ISA
}  // namespace
}  // namespace zoo
