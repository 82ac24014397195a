// Vectors of ZOO_W floats for the focal loss: loads and stores of each type, exp, logarithm, power, sums, and the terms of ZOO_W
// rows. Included once for each instruction set by focal_loss_simd.h. Vectors are the compiler's extension (GCC and clang);
// intrinsics are used only if one instruction replaces several.

namespace zoo {
namespace {
namespace ZOO_ISA {

constexpr int W = ZOO_W;
constexpr int64_t stream_from = 4 << 20;  // logits from which stores that bypass the caches are faster (16 MB)
typedef float F __attribute__((vector_size(4 * W), may_alias));
typedef int32_t I __attribute__((vector_size(4 * W), may_alias));
typedef uint32_t U __attribute__((vector_size(4 * W), may_alias));
typedef uint16_t H __attribute__((vector_size(2 * W), may_alias));
typedef double D __attribute__((vector_size(8 * W), may_alias));

#define ZOO_INLINE inline __attribute__((always_inline))

ZOO_INLINE F all(float value) { return F{} + value; }
ZOO_INLINE F load(const float* from) { F out; std::memcpy(&out, from, sizeof out); return out; }
ZOO_INLINE void store(float* to, F value) { std::memcpy(to, &value, sizeof value); }
ZOO_INLINE I bits(F value) { return (I)value; }
ZOO_INLINE F floats(I value) { return (F)value; }
ZOO_INLINE F pick(I mask, F yes, F no) { return mask ? yes : no; }
ZOO_INLINE bool any(I mask) {
#if ZOO_W == 16
  return _mm512_movepi32_mask((__m512i)mask) != 0;
#elif ZOO_W == 8
  return _mm256_movemask_ps((__m256)mask) != 0;
#else
  return (mask[0] | mask[1] | mask[2] | mask[3]) != 0;
#endif
}
ZOO_INLINE float sum(F value) {
  float parts[W];
  store(parts, value);
  for (int width = W / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) parts[i] += parts[i + width];
  return parts[0];
}
ZOO_INLINE double sum(D value) {
  double parts[W];
  std::memcpy(parts, &value, sizeof parts);
  for (int width = W / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) parts[i] += parts[i + width];
  return parts[0];
}

#if ZOO_W == 16
// Converts between bfloat16 and the upper halves of floats by one permutation instead of two or three instructions.
alignas(64) const uint16_t odd_words[32] = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
alignas(64) const uint16_t twice_words[32] = {0, 0, 1, 1, 2,  2,  3,  3,  4,  4,  5,  5,  6,  6,  7,  7,
                                              8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15};
#endif

// Element types: float, and the two halves as 16 bits.
struct Single { using Stored = float; };
struct Brain { using Stored = uint16_t; };
struct Half { using Stored = uint16_t; };

template <typename T>
ZOO_INLINE F load_as(const typename T::Stored* from) {
  if constexpr (std::is_same_v<T, Single>) {
    return load(from);
  } else if constexpr (std::is_same_v<T, Brain>) {
#if ZOO_W == 16
    const __m512i half = _mm512_castsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
    return (F)_mm512_maskz_permutexvar_epi16(0xaaaaaaaau, _mm512_load_si512(twice_words), half);
#else
    H half;
    std::memcpy(&half, from, sizeof half);
    return floats(__builtin_convertvector(half, I) << 16);
#endif
  } else {
#if ZOO_W == 16
    return (F)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif ZOO_W == 8
    return (F)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    F out;
    for (int i = 0; i < W; ++i) out[i] = from_half(from[i], false);
    return out;
#endif
  }
}

template <typename T>
ZOO_INLINE void store_as(typename T::Stored* to, F value) {
  if constexpr (std::is_same_v<T, Single>) {
    store(to, value);
  } else if constexpr (std::is_same_v<T, Brain>) {
    const I in = bits(value);
    const I up = in + 0x7fff + ((in >> 16) & 1);  // ties to even; never NaN here
#if ZOO_W == 16
    const __m512i half = _mm512_permutexvar_epi16(_mm512_load_si512(odd_words), (__m512i)up);
    std::memcpy(to, &half, sizeof(H));
#else
    const H half = __builtin_convertvector(up >> 16, H);
    std::memcpy(to, &half, sizeof half);
#endif
  } else {
#if ZOO_W == 16
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT));
#elif ZOO_W == 8
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < W; ++i) to[i] = to_half(value[i], false);
#endif
  }
}

// The first `count` elements, then `fill`; does not access memory beyond them.
template <typename T>
ZOO_INLINE F load_part(const typename T::Stored* from, int64_t count, float fill) {
  float parts[W];
  for (int i = 0; i < W; ++i) {
    if (i >= count) parts[i] = fill;
    else if constexpr (std::is_same_v<T, Single>) parts[i] = from[i];
    else parts[i] = from_half(from[i], std::is_same_v<T, Brain>);
  }
  return load(parts);
}
template <typename T>
ZOO_INLINE void store_part(typename T::Stored* to, F value, int64_t count) {
  typename T::Stored parts[W];
  store_as<T>(parts, value);
  for (int i = 0; i < W && i < count; ++i) to[i] = parts[i];
}

// load_part and store_part of floats, by one instruction instead of a copy in memory if there is one.
ZOO_INLINE F load_end(const float* from, int64_t count, F fill) {
#if ZOO_W == 16
  return (F)_mm512_mask_loadu_ps((__m512)fill, __mmask16((1u << count) - 1), from);
#else
  for (int64_t i = 0; i < W && i < count; ++i) fill[i] = from[i];
  return fill;
#endif
}
template <typename T>
ZOO_INLINE void store_end(typename T::Stored* to, F value, int64_t count) {
#if ZOO_W == 16
  if constexpr (std::is_same_v<T, Single>) return _mm512_mask_storeu_ps(to, __mmask16((1u << count) - 1), (__m512)value);
#endif
  store_part<T>(to, value, count);
}

// x 2^n; 0 if the result would be a denormal. n is added to the exponent's bits as unsigned numbers, since the sums of lanes
// that are not picked may overflow.
ZOO_INLINE F times_2_to(F x, I n) { return pick(n < -126, F{}, (F)((U)x + ((U)n << 23))); }

// exp(r) for |r| <= log(2) / 2, relative error 3e-9 before rounding (fitted by reweighted least squares).
ZOO_INLINE F exp_near_0(F r) {
  F p = all(1.38145383e-3f);
  p = p * r + 8.36874545e-3f;
  p = p * r + 4.1668389e-2f;
  p = p * r + 1.66665211e-1f;
  p = p * r + 4.9999994e-1f;
  return (p * r) * r + r + 1.0f;
}

#if ZOO_W == 16
alignas(64) const float powers[32] = {
    // 2^(i / 32)
    1.0f,        1.0218972f,  1.04427373f, 1.06714046f, 1.09050775f, 1.1143868f,  1.13878858f, 1.1637249f,
    1.18920708f, 1.21524739f, 1.24185777f, 1.26905096f, 1.29683959f, 1.32523668f, 1.35425556f, 1.38390994f,
    1.41421354f, 1.44518077f, 1.47682619f, 1.50916445f, 1.54221082f, 1.5759809f,  1.61049032f, 1.64575553f,
    1.68179286f, 1.71861935f, 1.75625217f, 1.79470909f, 1.8340081f,  1.87416768f, 1.91520655f, 1.95714414f};
#endif

// exp(z) for |z| <= 45, or (scaled) exp(z) 2^-k for |z| <= reach + 300. y is z / log(2) rounded, moved to where float's
// last bits represent it.
#if ZOO_W == 16
constexpr float moved = 393280.0f;  // 1.5 2^18 + 64: the last bit is 1 / 32, and the last 12 bits represent [-64, 64)

ZOO_INLINE F rounded(F z) { return (F)_mm512_fmadd_ps((__m512)z, _mm512_set1_ps(1.44269504f), _mm512_set1_ps(moved)); }

// 2^(i / 32) from a table in two registers, i the low bits of y; exp of the rest, below 0.0109, to degree 2, where
// 1 + 1.466e-5 instead of 1 spreads the missing r^3 / 6 evenly: relative error 6e-8.
template <bool scaled>
ZOO_INLINE F exp_from(F z, F y, float k) {
  const __m512 n = _mm512_sub_ps((__m512)y, _mm512_set1_ps(moved));
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693147182f), (__m512)z);
  if constexpr (scaled) r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-1.9046543e-9f), r);
  const __m512 t = _mm512_permutex2var_ps(_mm512_load_ps(powers), (__m512i)y, _mm512_load_ps(powers + 16));
  const __m512 p = _mm512_fmadd_ps(_mm512_fmadd_ps(r, _mm512_set1_ps(0.5f), _mm512_set1_ps(1.00001466f)), r, _mm512_set1_ps(1.0f));
  return (F)_mm512_scalef_ps(_mm512_mul_ps(t, p), scaled ? _mm512_sub_ps(n, _mm512_set1_ps(k)) : n);
}
#else
constexpr float moved = 12582912.0f;  // 1.5 2^23: the last bit is 1

ZOO_INLINE F rounded(F z) { return z * 1.44269504f + moved; }

template <bool scaled>
ZOO_INLINE F exp_from(F z, F y, float k) {
  const F n = y - moved;
  // log 2 in three parts, of which n (14 bits) times the first two is exact.
  const F r = ((z - n * 0.693359375f) - n * -2.121925354e-4f) - n * -1.90465421e-9f;
  return times_2_to(exp_near_0(r), bits(y) - 0x4b400000 - int32_t(scaled ? k : 0));
}
#endif

template <bool scaled>
ZOO_INLINE F exp_of(F z, float k) { return exp_from<scaled>(z, rounded(z), k); }

// exp(z) and whether any z was beyond the guard, NaN and infinity among them. With AVX-512 one instruction: the bits of y
// above the last 12 are constant within the guard.
struct Guard {
  I seen{};
  ZOO_INLINE F exp(F z) {
    const F y = rounded(z);
#if ZOO_W == 16
    seen = (I)_mm512_ternarylogic_epi32((__m512i)seen, (__m512i)y, _mm512_set1_epi32(0x48c00000), 0xf6);  // seen | (y ^ c)
#else
    const I size = bits(z) & 0x7fffffff;
    seen = size > seen ? size : seen;
#endif
    return exp_from<false>(z, y, 0);
  }
  bool holds() const {
#if ZOO_W == 16
    return !any((U)seen > 0xfffu);
#else
    return !any(seen > bits(all(30.0f)));
#endif
  }
};

// log(x) = k log 2 + log_m for normal x in (0, 1], rest = 1 - x known exactly where x is near 1.
struct Log {
  F k, log_m;
};
ZOO_INLINE Log log_of(F x, F rest) {
  const I near = rest < 0.2928f;
  const I above = bits(x) - 0x3f3504f3;  // sqrt(1/2)
  const F m = floats((above & 0x7fffff) + 0x3f3504f3);
  const F f = pick(near, -rest, m - 1.0f);
  const F k = pick(near, F{}, __builtin_convertvector(above >> 23, F));
  F p = all(-7.63220862e-2f);
  p = p * f + 1.27608299e-1f;
  p = p * f + -1.31606475e-1f;
  p = p * f + 1.4201887e-1f;
  p = p * f + -1.66233256e-1f;
  p = p * f + 2.00012207e-1f;
  p = p * f + -2.50008225e-1f;
  p = p * f + 3.33333313e-1f;
  return {k, (p * f + -0.5f) * (f * f) + f};
}

// q^gamma, gamma = high + low with 12 bits in high, so that high times the exponent is exact.
struct Gamma {
  float whole, high, low;
  explicit Gamma(double gamma) : whole(float(gamma)) {
    uint32_t in;
    std::memcpy(&in, &whole, 4);
    in &= 0xfffff000u;
    std::memcpy(&high, &in, 4);
    low = float(gamma - high);
  }
};
ZOO_INLINE F power(F q, F p, const Gamma& gamma) {
  const Log log = log_of(q, p);
  const F large = log.k * gamma.high;
  const F small = log.k * gamma.low + log.log_m * (gamma.whole * 1.44269504f);
  const F wanted = large + small;
  const F clipped = pick(wanted < -200.0f, all(-200.0f), wanted);
  const F y = clipped + 12582912.0f;
  const F n = y - 12582912.0f;
  const F part = pick(wanted < -200.0f, F{}, (large - n) + small);
  const F out = times_2_to(exp_near_0(part * 0.693147182f), bits(y) - 0x4b400000);
  return pick(q == 0.0f, F{}, out);
}

// terms() of focal_loss.h for W rows at once.
struct Rows {
  F loss, power, p, slope_over_total;
};
ZOO_INLINE Rows rows_of(F e, F others, F far, bool scaled, const Gamma& gamma) {
  const F total = e + others;
  const F inverse = 1.0f / total;
  const F p = e * inverse, q = others * inverse;
  const Log log = log_of(p, q);
  F minus_log = -(log.k * 0.693147182f + log.log_m);
  const I tiny = p < 1e-36f;
  if (__builtin_expect(any(tiny), false)) {  // p may have lost some or all digits: log(total) - log(e); for a scaled e log(total) - (z_t - k log 2)
    const Log of_total = log_of(total, all(1.0f)), of_e = log_of(e, all(1.0f));
    if (!scaled) far = -(of_e.k * 0.693147182f + of_e.log_m);
    minus_log = pick(tiny, far + (of_total.k * 0.693147182f + of_total.log_m), minus_log);
  }
  const F product = pick(p == 0.0f, F{}, p * minus_log);  // the limit at p = 0 is 0
  if (gamma.whole == 2.0f) {
    const F square = q * q;
    return {square * minus_log, square, p, (square + 2.0f * q * product) * inverse};
  }
  if (gamma.whole == 0.0f) return {minus_log, all(1.0f), p, inverse};
  const F raised = power(q, p, gamma);
  const F ratio = pick(q == 0.0f, all(1.0f), product / q);
  return {raised * minus_log, raised, p, raised * (1.0f + gamma.whole * ratio) * inverse};
}

ZOO_INLINE F larger(F a, F b) {
#if ZOO_W == 16
  return (F)_mm512_max_ps((__m512)a, (__m512)b);
#else
  return pick(a > b, a, b);
#endif
}

// The largest lane, or NaN if any is broken.
ZOO_INLINE float highest(F top, I broken) {
  if (any(broken)) return std::numeric_limits<float>::quiet_NaN();
  float most = top[0];
  for (int i = 1; i < W; ++i) most = top[i] > most ? top[i] : most;
  return most;
}

// The first `count` lanes, and 0 in the others.
ZOO_INLINE F first_of(F value, int64_t count) {
#if ZOO_W == 16
  return (F)_mm512_maskz_mov_ps(__mmask16((1u << count) - 1), (__m512)value);
#else
  I mask;
  for (int i = 0; i < W; ++i) mask[i] = i < count ? -1 : 0;
  return floats(bits(value) & mask);
#endif
}

ZOO_INLINE F where_equal(F x, float to, F yes, F no) {
#if ZOO_W == 16
  return (F)_mm512_mask_mov_ps((__m512)no, _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(to), _CMP_EQ_OQ), (__m512)yes);
#else
  return pick(x == to, yes, no);
#endif
}

// Adds `other` to `others` in lanes where x != to, and `same` to `sames` where x == to.
ZOO_INLINE void split(F x, float to, F other, F& others, F same, F& sames) {
#if ZOO_W == 16
  const __mmask16 equal = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(to), _CMP_EQ_OQ);
  others = (F)_mm512_mask_add_ps((__m512)others, __mmask16(~equal), (__m512)others, (__m512)other);
  sames = (F)_mm512_mask_add_ps((__m512)sames, equal, (__m512)sames, (__m512)same);
#else
  const I equal = x == to;
  others += floats(bits(other) & ~equal);
  sames += floats(bits(same) & equal);
#endif
}

#if ZOO_W >= 8
ZOO_INLINE void past_caches(float* to, F value) {
#if ZOO_W == 16
  _mm512_stream_ps(to, (__m512)value);
#else
  _mm256_stream_ps(to, (__m256)value);
#endif
}
#endif

// Lane i is the result of `join` over the lanes of v[i].
template <typename Join>
ZOO_INLINE F joined(F* v, Join join) {
#if ZOO_W == 16
  for (int i = 0; i < 16; i += 2)
    v[i / 2] = join((F)_mm512_unpacklo_ps((__m512)v[i], (__m512)v[i + 1]), (F)_mm512_unpackhi_ps((__m512)v[i], (__m512)v[i + 1]));
  for (int i = 0; i < 8; i += 2) {
    const __m512d a = (__m512d)v[i], b = (__m512d)v[i + 1];
    v[i / 2] = join((F)_mm512_unpacklo_pd(a, b), (F)_mm512_unpackhi_pd(a, b));
  }
  for (int count = 4; count > 1; count /= 2)
    for (int i = 0; i < count; i += 2) {
      const __m512 a = (__m512)v[i], b = (__m512)v[i + 1];
      v[i / 2] = join((F)_mm512_shuffle_f32x4(a, b, 0x88), (F)_mm512_shuffle_f32x4(a, b, 0xdd));
    }
  return v[0];
#elif ZOO_W == 8
  for (int i = 0; i < 8; i += 2)
    v[i / 2] = join((F)_mm256_unpacklo_ps((__m256)v[i], (__m256)v[i + 1]), (F)_mm256_unpackhi_ps((__m256)v[i], (__m256)v[i + 1]));
  for (int i = 0; i < 4; i += 2) {
    const __m256d a = (__m256d)v[i], b = (__m256d)v[i + 1];
    v[i / 2] = join((F)_mm256_unpacklo_pd(a, b), (F)_mm256_unpackhi_pd(a, b));
  }
  const __m256 a = (__m256)v[0], b = (__m256)v[1];
  return join((F)_mm256_permute2f128_ps(a, b, 0x20), (F)_mm256_permute2f128_ps(a, b, 0x31));
#else
  for (int i = 0; i < W; ++i)  // two lanes at a time, so that a float's sum is that of pairs
    v[i] = join(F{v[i][0], v[i][2], 0, 0}, F{v[i][1], v[i][3], 0, 0});
  return join(F{v[0][0], v[1][0], v[2][0], v[3][0]}, F{v[0][1], v[1][1], v[2][1], v[3][1]});
#endif
}
ZOO_INLINE F sums_of(F* v) {
  return joined(v, [](F a, F b) __attribute__((always_inline)) { return a + b; });
}
ZOO_INLINE F largest_of(F* v) {
  return joined(v, [](F a, F b) __attribute__((always_inline)) { return larger(a, b); });
}

}  // namespace ZOO_ISA
}  // namespace
}  // namespace zoo
