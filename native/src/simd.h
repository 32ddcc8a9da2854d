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

inline f32x16 splat(float x) { return f32x16{} + x; }
inline i32x16 splat(int32_t x) { return i32x16{} + x; }
inline f32x16 to_float(i32x16 v) { return __builtin_convertvector(v, f32x16); }
inline f32x16 from_u8(const uint8_t* p) { return __builtin_convertvector(load<u8x16>(p), f32x16); }
inline f32x16 from_i8(const int8_t* p) { return __builtin_convertvector(load<i8x16>(p), f32x16); }
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

/// Each lane: acc + the four products of unsigned bytes of w and signed bytes of x. Exact for all values.
inline i32x16 dot4(i32x16 acc, u32x16 w, i32x16 x) {
#if defined(__AVX512VNNI__)
  return (i32x16)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)w, (__m512i)x);
#elif defined(__AVX2__)
  // Even and odd bytes apart, as 16-bit numbers: maddubs would saturate at 255 * 127 * 2.
  i32x16 out;
  for (int half = 0; half < 2; half++) {
    const auto at = [&](const void* v) { return _mm256_loadu_si256(static_cast<const __m256i*>(v) + half); };
    const __m256i ww = at(&w), xx = at(&x);
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(ww, _mm256_set1_epi16(0xff)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(xx, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(ww, 8), _mm256_srai_epi16(xx, 8));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(&out) + half,
                        _mm256_add_epi32(at(&acc), _mm256_add_epi32(even, odd)));
  }
  return out;
#else
  // NEON multiplies signed bytes by signed bytes: w - 128, and 128 times the sum of x on top (64 twice).
  i32x16 out;
  for (int quarter = 0; quarter < 4; quarter++) {
    const auto at = [&](const void* v) { return static_cast<const int8_t*>(v) + 16 * quarter; };
    const int8x16_t ww = veorq_s8(vld1q_s8(at(&w)), vdupq_n_s8(-128)), xx = vld1q_s8(at(&x));
    int32x4_t a = vdotq_s32(vld1q_s32(reinterpret_cast<const int32_t*>(&acc) + 4 * quarter), ww, xx);
    a = vdotq_s32(vdotq_s32(a, vdupq_n_s8(64), xx), vdupq_n_s8(64), xx);
    vst1q_s32(reinterpret_cast<int32_t*>(&out) + 4 * quarter, a);
  }
  return out;
#endif
}

/// Each byte of v, 0 to 15, replaced by the table's byte of that number.
inline u32x16 lookup16(u32x16 v, const uint8_t* table) {
#if defined(__AVX512BW__)
  const __m512i t = _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
  return (u32x16)_mm512_shuffle_epi8(t, (__m512i)v);
#else
  uint8_t bytes[64];
  std::memcpy(bytes, &v, 64);
  for (uint8_t& b : bytes) b = table[b & 15];
  return load<u32x16>(bytes);
#endif
}

/// e^x to about 2 units in the last place: 2^n * p(r) with |r| <= ln(2)/2 (Cephes' polynomial); 0 below -87, inf above 88.7.
inline f32x16 exp(f32x16 x) {
  const f32x16 clamped = max(min(x, splat(88.8f)), splat(-88.0f));
  const f32x16 scaled = clamped * 1.44269504f;
  const i32x16 n = __builtin_convertvector(scaled + (scaled < 0 ? splat(-0.5f) : splat(0.5f)), i32x16);
  const f32x16 nf = to_float(n);
  const f32x16 r = fma(nf, splat(2.12194440e-4f), fma(nf, splat(-0.693359375f), clamped));
  f32x16 p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r + 1.0f);
  // Two factors, because 2^128 itself is no float although e^88.7 is
  const i32x16 low = n >> 1;
  const f32x16 result = p * (f32x16)((low + 127) << 23) * (f32x16)((n - low + 127) << 23);
  return x < -87.3f ? splat(0.0f) : (x != x ? x : result);
}

}  // namespace tokenmill::ISA_NAMESPACE
