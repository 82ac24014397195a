// The focal loss of a block of rows in vectors of ZOO_W floats; included once for each instruction set, inside its target
// pragma, with ZOO_ISA as the name of its namespace. Vectors are the compiler's own (GCC and clang), intrinsics stand
// only where one AVX-512 instruction does the work of several.
//
// A block is cut into tiles that stay in the first cache. exp runs over a tile in memory order, whatever C is; then the row
// sums, then the logarithms and powers of ZOO_W rows at a time, then one multiplication over the tile. As long as no logit
// of the tile lies beyond +-30 exp needs no maximum: exp(30) C and exp(-30) are far from float's ends. Otherwise each row
// is scaled by a power of two near its largest exp, which rounds nothing.

namespace zoo {
namespace {
namespace ZOO_ISA {

constexpr int W = ZOO_W;
typedef float F __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));

#define ZOO_INLINE inline __attribute__((always_inline))

constexpr int64_t tile_floats = 4096;  // 16 KB of exponentials, half a first-level cache
constexpr int64_t most_rows = 256;     // in a tile
constexpr int64_t long_row = 1024;     // from that many classes on a row is its own tile, and not kept
constexpr float guard = 30.0f;

ZOO_INLINE F all(float value) { return F{} + value; }
ZOO_INLINE I ints(int32_t value) { return I{} + value; }
ZOO_INLINE F load(const float* from) {
  F out;
  std::memcpy(&out, from, sizeof out);
  return out;
}
ZOO_INLINE void store(float* to, F value) { std::memcpy(to, &value, sizeof value); }
ZOO_INLINE I bits(F value) { return reinterpret_cast<I&>(value); }
ZOO_INLINE F floats(I value) { return reinterpret_cast<F&>(value); }
ZOO_INLINE F pick(I mask, F yes, F no) { return floats((mask & bits(yes)) | (~mask & bits(no))); }
ZOO_INLINE F larger(F a, F b) { return a > b ? a : b; }
ZOO_INLINE F magnitude(F value) { return floats(bits(value) & 0x7fffffff); }
ZOO_INLINE float sum(F value) {
  float parts[W], out = 0;
  store(parts, value);
  for (int width = W / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) parts[i] += parts[i + width];
  out = parts[0];
  return out;
}

// The first `count` floats at `from`, zero (or `fill`) beyond; reads nothing beyond.
ZOO_INLINE F load_part(const float* from, int64_t count, float fill = 0) {
#if ZOO_W == 16
  return reinterpret_cast<F>(_mm512_mask_loadu_ps(_mm512_set1_ps(fill), __mmask16((1u << count) - 1), from));
#else
  float parts[W];
  for (int i = 0; i < W; ++i) parts[i] = i < count ? from[i] : fill;
  return load(parts);
#endif
}
ZOO_INLINE void store_part(float* to, F value, int64_t count) {
#if ZOO_W == 16
  _mm512_mask_storeu_ps(to, __mmask16((1u << count) - 1), reinterpret_cast<__m512>(value));
#else
  float parts[W];
  store(parts, value);
  std::memcpy(to, parts, size_t(count) * 4);
#endif
}

// exp(r) for |r| <= log(2) / 2: minimax of degree 6, relative error below 1e-7.
ZOO_INLINE F exp_near_0(F r) {
  F p = all(1.38275e-3f);
  p = p * r + 8.3683e-3f;
  p = p * r + 4.16684e-2f;
  p = p * r + 1.6666513e-1f;
  p = p * r + 4.9999994e-1f;
  return (p * r) * r + r + 1.0f;
}

// x 2^n, n the integers in `steps`; 0 where the result would be a denormal.
ZOO_INLINE F times_2_to(F x, I steps) {
  const I low = steps < -126;
  return floats((bits(x) + (steps << 23)) & ~low);
}

#if ZOO_W == 16
alignas(64) const float powers[32] = {
    1.00000000f, 1.02189717f, 1.04427373f, 1.06714046f, 1.09050775f, 1.11438680f, 1.13878858f, 1.16372490f,
    1.18920708f, 1.21524739f, 1.24185777f, 1.26905096f, 1.29683959f, 1.32523668f, 1.35425556f, 1.38390982f,
    1.41421354f, 1.44518077f, 1.47682619f, 1.50916445f, 1.54221082f, 1.57598090f, 1.61049032f, 1.64575541f,
    1.68179286f, 1.71861935f, 1.75625217f, 1.79470909f, 1.83400807f, 1.87416768f, 1.91520655f, 1.95714414f};
#endif

// exp(z) 2^-k for |z| beyond no limit that k does not bring back: |z| <= 11000.
template <bool scaled>
ZOO_INLINE F exp_of(F z, float k) {
#if ZOO_W == 16
  // 2^(i/32) from a table in two registers, i from the low bits of a rounding addition, and exp of the rest (below 0.0109)
  // to degree 2: 1 + 1.466e-5 for r instead of 1 spreads r^3 / 6 evenly.
  const __m512 magic = _mm512_set1_ps(393216.0f);  // 1.5 * 2^18: the last bit is 1/32
  const __m512 x = reinterpret_cast<__m512>(z);
  const __m512 y = _mm512_fmadd_ps(x, _mm512_set1_ps(1.44269504f), magic);
  const __m512 n = _mm512_sub_ps(y, magic);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693147182f), x);
  if (scaled) r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-1.90465421e-9f), r);
  const __m512 t = _mm512_permutex2var_ps(_mm512_load_ps(powers), _mm512_castps_si512(y), _mm512_load_ps(powers + 16));
  const __m512 p = _mm512_fmadd_ps(_mm512_fmadd_ps(r, _mm512_set1_ps(0.5f), _mm512_set1_ps(1.00001466f)), r, _mm512_set1_ps(1.0f));
  const __m512 e = _mm512_scalef_ps(_mm512_mul_ps(t, p), scaled ? _mm512_sub_ps(n, _mm512_set1_ps(k)) : n);
  return reinterpret_cast<F>(e);
#else
  const F y = z * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  const F n = y - 12582912.0f;
  F r;
  if (scaled) {  // n has up to 14 bits: three parts of log 2, of which two times n are exact
    r = ((z - n * 0.693359375f) - n * -2.1219253540e-4f) - n * 7.4e-12f;
    r = (z - n * 0.6926269531f) - n * 5.2022934e-4f - n * 4.0e-11f;
  } else {
    r = (z - n * 0.693359375f) - n * -2.12194440e-4f;
  }
  return times_2_to(exp_near_0(r), bits(y) - 0x4b400000 - int32_t(scaled ? k : 0));
#endif
}
