// The searches for good scales of GGUF's blocks, as ggml has them (ggml-quants.c), with and without importances.
//
// As many blocks as a register has lanes are encoded side by side, a lane each, so that what a lane computes is, operation by operation, what
// ggml's plain C computes: the same bits, but many at a time and without sums across lanes. Codes are whole numbers
// kept as floats; rounding is to nearest even, as ggml's. Where a group's scale becomes zero the codes are zero too
// (ggml leaves there what the search had; both decode to the same numbers).
#pragma once

namespace tokenmill::ISA_NAMESPACE::blocks {

// One register of the machine, not simd.h's sixteen lanes: compilers split selections of wider vectors badly.
#if defined(__AVX512F__)
constexpr int lanes = 16;
#elif defined(__AVX2__)
constexpr int lanes = 8;
#else
constexpr int lanes = 4;
#endif
typedef float F __attribute__((vector_size(4 * lanes)));
typedef int32_t I __attribute__((vector_size(4 * lanes)));
typedef uint32_t U __attribute__((vector_size(4 * lanes)));
typedef uint8_t B __attribute__((vector_size(lanes)));

inline F splat(float x) { return F{} + x; }
inline F max(F a, F b) { return a > b ? a : b; }
inline F min(F a, F b) { return a < b ? a : b; }

constexpr float no_scale = 1e-15f;  // ggml's GROUP_MAX_EPS: what is smaller is zero

inline F nearest(F v) {
  return (v + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: what is left of the mantissa is the whole number
}
inline F clamped(F v, float least, float most) { return min(max(v, splat(least)), splat(most)); }
inline F magnitude(F v) { return (F)((U)v & 0x7fffffff); }
inline F select(I mask, F a, F b) { return mask ? a : b; }

inline F root(F v) {
#if defined(__AVX512F__)
  return (F)_mm512_sqrt_ps((__m512)v);
#elif defined(__AVX2__)
  return (F)_mm256_sqrt_ps((__m256)v);
#else
  return (F)vsqrtq_f32((float32x4_t)v);
#endif
}

#if defined(__aarch64__)
typedef __fp16 Half;  // GCC 12 has no _Float16 there
#else
typedef _Float16 Half;
#endif

/// Blocks being made. Bytes go to a memory of its own: the last batch of a matrix may have fewer blocks.
struct Blocks {
  int64_t bytes;             // a block
  uint8_t memory[lanes * 256];  // [lanes, bytes]

  void put(int at, I v) {
    const B b = __builtin_convertvector(v, B);
    for (int lane = 0; lane < lanes; lane++) memory[lane * bytes + at] = b[lane];
  }
  void put(int at, F code) { put(at, __builtin_convertvector(code, I)); }
  /// Two bytes of half precision; gives back what they mean.
  F put_half(int at, F v) {
    F out;
    for (int lane = 0; lane < lanes; lane++) {
      const Half half = static_cast<Half>(v[lane]);
      std::memcpy(memory + lane * bytes + at, &half, 2);
      out[lane] = static_cast<float>(half);
    }
    return out;
  }
};

inline I whole(F code) { return __builtin_convertvector(code, I); }

/// What a search found: x is about scale * code - least.
struct Affine {
  F scale, least;
  F inverse, from;  // the codes: nearest(inverse * (x - from)), clamped
};

/// Codes 0..top with a minimum that is not above zero. The scale that the range gives is varied in `steps` steps, each
/// followed by a weighted least-squares fit of scale and minimum (make_qkx2_quants, make_qkx3_quants).
template <int N>
Affine fit_affine(const F* x, const F* w, float top, float first, float step, int steps, bool absolute) {
  F low = x[0], high = x[0], sum_w = w[0], sum_x = w[0] * x[0], wx[N];
  wx[0] = sum_x;
  for (int i = 1; i < N; i++) {
    low = min(x[i], low), high = max(x[i], high);
    wx[i] = w[i] * x[i];
    sum_w += w[i], sum_x += wx[i];
  }
  low = min(low, F{});
  const I flat = high <= low;
  const F start = low;
  Affine best{{}, low, splat(top) / (high - low), low};
  best.scale = 1.0f / best.inverse;
  F error = {};
  for (int i = 0; i < N; i++) {
    const F code = clamped(nearest(best.inverse * (x[i] - low)), 0, top);
    const F off = best.scale * code + low - x[i];
    error += w[i] * (absolute ? magnitude(off) : off * off);
  }
  for (int s = 0; s <= steps; s++) {
    const F inverse = splat(first + step * static_cast<float>(s) + top) / (high - low);
    F l1 = {}, l2 = {}, xl = {}, codes[N];
    for (int i = 0; i < N; i++) {
      const F code = codes[i] = clamped(nearest(inverse * (x[i] - low)), 0, top);
      const F wl = w[i] * code;
      l1 += wl, l2 += wl * code, xl += wl * x[i];
    }
    const F det = sum_w * l2 - l1 * l1;
    F scale = (sum_w * xl - sum_x * l1) / det, least = (l2 * sum_x - l1 * xl) / det;
    const I above = least > 0.0f;
    scale = select(above, xl / l2, scale), least = select(above, F{}, least);
    F now = {};
    for (int i = 0; i < N; i++) {
      const F off = scale * codes[i] + least - x[i];
      now += w[i] * (absolute ? magnitude(off) : off * off);
    }
    const I better = (det > 0.0f) & (now < error);
    error = select(better, now, error);
    best.inverse = select(better, inverse, best.inverse), best.from = select(better, low, best.from);
    best.scale = select(better, scale, best.scale), low = select(better, least, low);
  }
  best.least = -select(flat, start, low);
  best.scale = select(flat, F{}, best.scale);
  best.inverse = select(flat, F{}, best.inverse), best.from = select(flat, F{}, best.from);
  return best;
}

struct Symmetric {
  F scale, inverse;  // the codes: nearest(inverse * x), clamped to -levels..levels-1
};

template <int N>
F largest(const F* x) {
  F most = {}, at = {};
  for (int i = 0; i < N; i++) {
    const I more = magnitude(x[i]) > most;
    most = select(more, magnitude(x[i]), most), at = select(more, x[i], at);
  }
  return at;
}

/// Codes -levels..levels-1 without a minimum: the scale is varied, the best weighted fit kept (make_qx_quants).
template <int N>
Symmetric fit_symmetric(const F* x, const F* w, float levels) {
  const F peak = largest<N>(x);
  Symmetric best = {};
  F quality = {}, wx[N];
  for (int i = 0; i < N; i++) wx[i] = w[i] * x[i];
  for (int t = -10; t <= 9; t++) {  // the first round is the plain scale, then those around it in tenths of a code
    if (t == 0) continue;
    const F inverse = splat(t == -10 ? -levels : -(levels + 0.1f * static_cast<float>(t))) / peak;
    F xl = {}, l2 = {};
    for (int i = 0; i < N; i++) {
      const F code = clamped(nearest(inverse * x[i]), -levels, levels - 1);
      xl += wx[i] * code, l2 += w[i] * code * code;
    }
    const I fits = l2 > 0.0f, better = t == -10 ? fits : fits & (xl * xl > quality * l2);
    const F scale = xl / l2;
    best.scale = select(better, scale, best.scale);
    best.inverse = t == -10 ? inverse : select(better, inverse, best.inverse);
    quality = select(better, scale * xl, quality);
  }
  const I zero = magnitude(peak) < no_scale;
  best.scale = select(zero, F{}, best.scale), best.inverse = select(zero, F{}, best.inverse);
  return best;
}

/// A scale for codes -levels..levels-1, weighted by x^2, improved code by code (make_q3_quants).
template <int N>
F fit_by_codes(const F* x, float levels) {
  const F peak = largest<N>(x), inverse = splat(-levels) / peak;
  F codes[N], xl = {}, l2 = {};
  for (int i = 0; i < N; i++) {
    const F w = x[i] * x[i];
    codes[i] = clamped(nearest(inverse * x[i]), -levels, levels - 1);
    xl += w * x[i] * codes[i], l2 += w * codes[i] * codes[i];
  }
  for (int round = 0; round < 5; round++)
    for (int i = 0; i < N; i++) {
      const F w = x[i] * x[i], old_xl = xl - w * x[i] * codes[i], old_l2 = l2 - w * codes[i] * codes[i];
      const F code = clamped(nearest(x[i] * old_l2 / old_xl), -levels, levels - 1);
      const F new_xl = old_xl + w * x[i] * code, new_l2 = old_l2 + w * code * code;
      const I better =
          (old_xl > 0.0f) & (code != codes[i]) & (new_l2 > 0.0f) & (new_xl * new_xl * l2 > xl * xl * new_l2);
      codes[i] = select(better, code, codes[i]), xl = select(better, new_xl, xl), l2 = select(better, new_l2, l2);
    }
  return select((magnitude(peak) < no_scale) | (l2 <= 0.0f), F{}, xl / l2);
}

/// Codes 0..top of numbers that are not negative, for the scales of a block (make_qp_quants); gives the scale.
template <int N>
F fit_positive(const F* x, const F* w, float top, F* codes) {
  F high = {};
  for (int i = 0; i < N; i++) high = max(high, x[i]);
  F inverse = splat(top) / high, error = {};
  for (int t = -5; t <= 4; t++) {
    if (t == 0) continue;
    const F at = splat(t == -5 ? top : 0.1f * static_cast<float>(t) + top) / high, scale = 1.0f / at;
    F now = {};
    for (int i = 0; i < N; i++) {
      F code = nearest(at * x[i]);
      if (t != -5) code = min(splat(top), code);
      const F off = x[i] - scale * code;
      now += w[i] * off * off;
    }
    const I better = now < error;
    error = t == -5 ? now : select(better, now, error);
    if (t != -5) inverse = select(better, at, inverse);
  }
  F xl = {}, l2 = {};
  for (int i = 0; i < N; i++) {
    codes[i] = min(splat(top), nearest(inverse * x[i]));
    xl += w[i] * x[i] * codes[i], l2 += w[i] * codes[i] * codes[i];
  }
  for (int round = 0; round < 5; round++)
    for (int i = 0; i < N; i++) {
      const F old_xl = xl - w[i] * x[i] * codes[i], old_l2 = l2 - w[i] * codes[i] * codes[i];
      const F code = min(splat(top), nearest(x[i] * old_l2 / old_xl));
      const F new_xl = old_xl + w[i] * x[i] * code, new_l2 = old_l2 + w[i] * code * code;
      const I better =
          (old_xl > 0.0f) & (old_l2 > 0.0f) & (code != codes[i]) & (new_xl * new_xl * l2 > xl * xl * new_l2);
      codes[i] = select(better, code, codes[i]), xl = select(better, new_xl, xl), l2 = select(better, new_l2, l2);
    }
  const I zero = high < no_scale;
  for (int i = 0; i < N; i++) codes[i] = select(zero, F{}, codes[i]);
  return select(zero | (l2 <= 0.0f), F{}, xl / l2);
}

}  // namespace tokenmill::ISA_NAMESPACE::blocks
