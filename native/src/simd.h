// Sixteen lanes, whatever the machine: GCC's and Clang's vector extensions lower one 64-byte vector to one AVX-512
// register, two AVX2 registers or four NEON registers. Only what they cannot say is written by hand here, once for each
// instruction set. This file is compiled several times, with other flags and another ISA_NAMESPACE each time.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#else
#include <arm_neon.h>
#endif

namespace tokenmill::ISA_NAMESPACE {

typedef float f32x16 __attribute__((vector_size(64)));
typedef int32_t i32x16 __attribute__((vector_size(64)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));
typedef uint16_t u16x16 __attribute__((vector_size(32)));
typedef uint8_t u8x16 __attribute__((vector_size(16)));
typedef int8_t i8x16 __attribute__((vector_size(16)));

template <class V>
inline V load(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <class V>
inline void store(void* to, V v) {
  std::memcpy(to, &v, sizeof v);
}

/// Not f32x16{} + x: that turns -0 into 0, so the compiler would have to add before it spreads.
inline f32x16 splat(float x) { return f32x16{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
inline i32x16 splat(int32_t x) { return i32x16{} + x; }
inline f32x16 to_float(i32x16 v) { return __builtin_convertvector(v, f32x16); }

/// Sixteen bytes as integers. By hand: GCC 12 takes a conversion to lanes four times as wide apart, number by number.
inline i32x16 widen(const uint8_t* p) {
#if defined(__AVX512F__)
  return (i32x16)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__)
  i32x16 out;
  for (int half = 0; half < 2; half++)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(&out) + half,
                        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8 * half))));
  return out;
#else
  i32x16 out;
  const uint8x16_t v = vld1q_u8(p);
  const uint16x8_t halves[2] = {vmovl_u8(vget_low_u8(v)), vmovl_u8(vget_high_u8(v))};
  uint32_t* to = reinterpret_cast<uint32_t*>(&out);
  for (int half = 0; half < 2; half++) {
    vst1q_u32(to + 8 * half, vmovl_u16(vget_low_u16(halves[half])));
    vst1q_u32(to + 8 * half + 4, vmovl_u16(vget_high_u16(halves[half])));
  }
  return out;
#endif
}
inline i32x16 widen(const int8_t* p) {
#if defined(__AVX512F__)
  return (i32x16)_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#elif defined(__AVX2__)
  i32x16 out;
  for (int half = 0; half < 2; half++)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(&out) + half,
                        _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8 * half))));
  return out;
#else
  return (widen(reinterpret_cast<const uint8_t*>(p)) ^ 0x80) - 0x80;
#endif
}
inline f32x16 from_u8(const uint8_t* p) { return to_float(widen(p)); }
inline f32x16 from_i8(const int8_t* p) { return to_float(widen(p)); }
inline f32x16 as_float(u32x16 v) { return (f32x16)v; }
inline u32x16 as_bits(f32x16 v) { return (u32x16)v; }

/// a * b + c with one rounding, so that every path that computes a number computes the same one.
inline f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  f32x16 out;
  for (int half = 0; half < 2; half++) {
    const auto at = [&](const f32x16& v) { return _mm256_loadu_ps(reinterpret_cast<const float*>(&v) + 8 * half); };
    _mm256_storeu_ps(reinterpret_cast<float*>(&out) + 8 * half, _mm256_fmadd_ps(at(a), at(b), at(c)));
  }
  return out;
#else
  f32x16 out;
  for (int quarter = 0; quarter < 4; quarter++) {
    const auto at = [&](const f32x16& v) { return vld1q_f32(reinterpret_cast<const float*>(&v) + 4 * quarter); };
    vst1q_f32(reinterpret_cast<float*>(&out) + 4 * quarter, vfmaq_f32(at(c), at(a), at(b)));
  }
  return out;
#endif
}

inline float sum(f32x16 v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(v);
#else
  float s = 0;
  for (int i = 0; i < 16; i++) s += v[i];
  return s;
#endif
}

inline int32_t sum(i32x16 v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_epi32((__m512i)v);
#else
  int32_t s = 0;
  for (int i = 0; i < 16; i++) s += v[i];
  return s;
#endif
}

inline f32x16 max(f32x16 a, f32x16 b) { return a > b ? a : b; }
inline f32x16 min(f32x16 a, f32x16 b) { return a < b ? a : b; }

inline float max(f32x16 v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps(v);
#else
  float m = v[0];
  for (int i = 1; i < 16; i++) m = v[i] > m ? v[i] : m;
  return m;
#endif
}

/// Sixteen IEEE half-precision numbers.
inline f32x16 from_half(const void* p) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  f32x16 out;
  for (int half = 0; half < 2; half++)
    _mm256_storeu_ps(reinterpret_cast<float*>(&out) + 8 * half,
                     _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p) + half)));
  return out;
#else
  // Shift exponent and mantissa into place; 2^112 moves the bias. Right for subnormals too.
  const u32x16 h = __builtin_convertvector(load<u16x16>(p), u32x16);
  const f32x16 magnitude = as_float((h & 0x7fff) << 13) * 0x1p112f;
  return as_float(as_bits(magnitude) | ((h & 0x8000) << 16));
#endif
}

inline f32x16 from_bf16(const void* p) {
  return as_float(__builtin_convertvector(load<u16x16>(p), u32x16) << 16);
}

/// To bfloat16, rounded to nearest even (finite numbers; NaN stays NaN).
inline void to_bf16(uint16_t* to, f32x16 v) {
#if defined(__AVX512BF16__)
  const __m256bh b = _mm512_cvtneps_pbh(v);
  std::memcpy(to, &b, sizeof b);
#else
  const u32x16 bits = as_bits(v);
  const u32x16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const u32x16 nan = (u32x16)(v != v);
  store(to, __builtin_convertvector((rounded & ~nan) | ((bits >> 16 | 0x40) & nan), u16x16));
#endif
}

#if defined(__AVX512VNNI__) || !defined(__x86_64__)
/// Sixteen inputs of 16 bits as `Dot` reads them: of every four the high bytes, then the low ones, both signed.
inline void store_inputs(int16_t* to, i32x16 v) {
  const i32x16 top = (v + 128) >> 8;
  const i8x16 high = __builtin_convertvector(top, i8x16), low = __builtin_convertvector(v - (top << 8), i8x16);
  typedef int8_t i8x32 __attribute__((vector_size(32)));
  store(to, (i8x32)__builtin_shufflevector(high, low, 0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23, 8, 9, 10,
                                           11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31));
}
#else
/// Sixteen inputs of 16 bits as `Dot` reads them: of every four the even ones, then the odd ones.
inline void store_inputs(int16_t* to, i32x16 v) {
  typedef int16_t i16x16 __attribute__((vector_size(32)));
  const i16x16 x = __builtin_convertvector(v, i16x16);
  store(to, __builtin_shufflevector(x, x, 0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15));
}
#endif

/// Sixteen sums of products of unsigned bytes (codes) and 16-bit inputs: exact for 32 of them with |x| <= 127 * 256.
struct Dot {
#if defined(__AVX512VNNI__)
  // Two products of bytes rather than one of 16-bit words: codes are multiplied as they are unpacked
  i32x16 high, low;
  /// `start`: what every sum begins with; `total`: the sum of the inputs that will be added.
  Dot(int32_t start, int32_t) : high(splat(0)), low(splat(start)) {}
  /// Codes of 16 rows and four inputs each.
  TOKENMILL_INLINE void add(u32x16 w, const int16_t* x) {
    int32_t h, l;
    std::memcpy(&h, x, 4);
    std::memcpy(&l, x + 2, 4);
    high = (i32x16)_mm512_dpbusd_epi32((__m512i)high, (__m512i)w, (__m512i)splat(h));
    low = (i32x16)_mm512_dpbusd_epi32((__m512i)low, (__m512i)w, (__m512i)splat(l));
  }
  TOKENMILL_INLINE i32x16 sums() const { return (high << 8) + low; }
#elif defined(__AVX2__)
  // Words, as there is no product of bytes here that does not saturate
  __m256i even[2], odd[2];
  Dot(int32_t start, int32_t) {
    even[0] = even[1] = _mm256_set1_epi32(start);
    odd[0] = odd[1] = _mm256_setzero_si256();
  }
  TOKENMILL_INLINE void add(u32x16 w, const int16_t* x) {
    int32_t e, o;
    std::memcpy(&e, x, 4);
    std::memcpy(&o, x + 2, 4);
    const __m256i xe = _mm256_set1_epi32(e), xo = _mm256_set1_epi32(o);
    for (int half = 0; half < 2; half++) {
      const __m256i ww = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(&w) + half);
      even[half] = _mm256_add_epi32(even[half], _mm256_madd_epi16(_mm256_and_si256(ww, _mm256_set1_epi16(0xff)), xe));
      odd[half] = _mm256_add_epi32(odd[half], _mm256_madd_epi16(_mm256_srli_epi16(ww, 8), xo));
    }
  }
  TOKENMILL_INLINE i32x16 sums() const {
    i32x16 out;
    for (int half = 0; half < 2; half++)
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(&out) + half, _mm256_add_epi32(even[half], odd[half]));
    return out;
  }
#else
  // NEON multiplies signed bytes by signed bytes: codes less 128, and 128 times the sum of the inputs on top
  int32x4_t high[4], low[4];
  Dot(int32_t start, int32_t total) {
    for (int i = 0; i < 4; i++) high[i] = vdupq_n_s32(0), low[i] = vdupq_n_s32(start + 128 * total);
  }
  TOKENMILL_INLINE void add(u32x16 w, const int16_t* x) {
    int32_t h, l;
    std::memcpy(&h, x, 4);
    std::memcpy(&l, x + 2, 4);
    const int8x16_t xh = vreinterpretq_s8_s32(vdupq_n_s32(h)), xl = vreinterpretq_s8_s32(vdupq_n_s32(l));
    for (int i = 0; i < 4; i++) {
      const int8x16_t ww = veorq_s8(vld1q_s8(reinterpret_cast<const int8_t*>(&w) + 16 * i), vdupq_n_s8(-128));
      high[i] = vdotq_s32(high[i], ww, xh);
      low[i] = vdotq_s32(low[i], ww, xl);
    }
  }
  TOKENMILL_INLINE i32x16 sums() const {
    i32x16 out;
    for (int i = 0; i < 4; i++)
      vst1q_s32(reinterpret_cast<int32_t*>(&out) + 4 * i, vaddq_s32(vshlq_n_s32(high[i], 8), low[i]));
    return out;
  }
#endif
};

/// Each byte of v, 0 to 15, replaced by the table's byte of that number.
inline u32x16 lookup16(u32x16 v, const uint8_t* table) {
#if defined(__AVX512BW__)
  const __m512i t = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return (u32x16)_mm512_shuffle_epi8(t, (__m512i)v);
#elif defined(__AVX2__)
  u32x16 out;
  const __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  for (int half = 0; half < 2; half++) {
    const __m256i at = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(&v) + half);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(&out) + half, _mm256_shuffle_epi8(t, at));
  }
  return out;
#else
  u32x16 out;
  const uint8x16_t t = vld1q_u8(table);
  for (int quarter = 0; quarter < 4; quarter++) {
    const uint8x16_t at = vld1q_u8(reinterpret_cast<const uint8_t*>(&v) + 16 * quarter);
    vst1q_u8(reinterpret_cast<uint8_t*>(&out) + 16 * quarter, vqtbl1q_u8(t, at));
  }
  return out;
#endif
}

/// e^x to about 2 units in the last place: 2^n * p(r) with |r| <= ln(2)/2 (Cephes' polynomial); 0 below -87, inf above 88.7.
inline f32x16 exp(f32x16 x) {
#if defined(__AVX512F__)
  const __m512 inside = _mm512_min_ps(splat(89.0f), _mm512_max_ps(splat(-88.0f), x));  // where x is NaN they return it
  const __m512 n = _mm512_roundscale_ps(inside * 1.44269504f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const f32x16 r = fma(n, splat(2.12194440e-4f), fma(n, splat(-0.693359375f), inside));
#else
  const f32x16 clamped = max(min(x, splat(88.8f)), splat(-88.0f));
  const f32x16 scaled = clamped * 1.44269504f;
  const i32x16 n = __builtin_convertvector(scaled + (scaled < 0 ? splat(-0.5f) : splat(0.5f)), i32x16);
  const f32x16 nf = to_float(n);
  const f32x16 r = fma(nf, splat(2.12194440e-4f), fma(nf, splat(-0.693359375f), clamped));
#endif
  f32x16 p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r + 1.0f);
#if defined(__AVX512F__)
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, splat(-87.3f), _CMP_NLT_UQ), p, n);
#else
  // Two factors, because 2^128 itself is no float although e^88.7 is
  const i32x16 low = n >> 1;
  const f32x16 result = p * (f32x16)((low + 127) << 23) * (f32x16)((n - low + 127) << 23);
  return x < -87.3f ? splat(0.0f) : (x != x ? x : result);
#endif
}

}  // namespace tokenmill::ISA_NAMESPACE
