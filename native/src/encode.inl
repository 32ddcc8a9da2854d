// Blocks of GGUF's formats out of floats, on the searches of encode_fit.inl. Source of the layouts: ggml-common.h block_*.
#pragma once

namespace tokenmill::ISA_NAMESPACE::blocks {

/// The input of one block a lane, value by value; the lanes that no block has are zero.
struct Values {
  F x[256], importance[256];
  F row_mean;  // of the squares of a block's whole row: the legacy formats weigh by it
  bool weighted;
};

template <int N>
F mean_square(const F* x, float factor) {
  F sum = {};
  for (int i = 0; i < N; i++) sum += x[i] * x[i];
  return factor * sum / static_cast<float>(N);
}

/// Weights of N values: importance * sqrt(spread + x^2).
template <int N>
void weigh(const Values& v, int at, F spread, F* w) {
  for (int i = 0; i < N; i++) w[i] = v.importance[at + i] * root(spread + v.x[at + i] * v.x[at + i]);
}

template <int N>
F total(const F* w) {
  F sum = {};
  for (int i = 0; i < N; i++) sum += w[i];
  return sum;
}

/// The codes of a group whose scale and minimum are what the file will hold.
template <int N>
void recode(const F* x, F scale, F least, float low, float high, F* codes) {
  for (int i = 0; i < N; i++)
    codes[i] = select(scale == 0.0f, F{}, clamped(nearest((x[i] + least) / scale), low, high) - low);
}

/// Two bits of each of four quarters of 128 codes share a byte (Q2_K, Q3_K).
inline void put_quarters(Blocks& out, int at, const F* codes) {
  for (int half = 0; half < 2; half++)
    for (int i = 0; i < 32; i++) {
      const auto code = [&](int quarter) { return whole(codes[128 * half + 32 * quarter + i]) & 3; };
      out.put(at + 32 * half + i, code(0) | code(1) << 2 | code(2) << 4 | code(3) << 6);
    }
}

inline void encode_q2_k(const Values& v, Blocks& out) {
  F w[16], scales[16], least[16], sums[16], ls[16], lm[16], codes[256], d, dmin;
  const F spread = mean_square<256>(v.x, 1);
  for (int g = 0; g < 16; g++) {
    const F* x = v.x + 16 * g;
    if (v.weighted) weigh<16>(v, 16 * g, spread, w);
    else for (int i = 0; i < 16; i++) w[i] = magnitude(x[i]);
    const Affine found = v.weighted ? fit_affine<16>(x, w, 3, -0.9f, 0.05f, 36, false)
                                    : fit_affine<16>(x, w, 3, -0.5f, 0.1f, 15, true);
    scales[g] = found.scale, least[g] = found.least, sums[g] = total<16>(w);
  }
  if (v.weighted) {
    d = fit_positive<16>(scales, sums, 15, ls), dmin = fit_positive<16>(least, sums, 15, lm);
  } else {
    const auto plain = [](const F* values, F* codes) {
      F high = {};
      for (int g = 0; g < 16; g++) high = max(high, values[g]);
      for (int g = 0; g < 16; g++)
        codes[g] = select(high > 0.0f, nearest(splat(15.0f) / high * values[g]), F{});
      return high / 15.0f;
    };
    d = plain(scales, ls), dmin = plain(least, lm);
  }
  d = out.put_half(80, d), dmin = out.put_half(82, dmin);
  for (int g = 0; g < 16; g++) {
    out.put(g, whole(ls[g]) | whole(lm[g]) << 4);
    recode<16>(v.x + 16 * g, d * ls[g], dmin * lm[g], 0, 3, codes + 16 * g);
  }
  put_quarters(out, 16, codes);
}

inline void encode_q3_k(const Values& v, Blocks& out) {
  F w[16], scales[16], sums[16], ls[16], codes[256], d;
  const F spread = mean_square<256>(v.x, 2);
  for (int g = 0; g < 16; g++) {
    if (!v.weighted) {
      scales[g] = fit_by_codes<16>(v.x + 16 * g, 4);
      continue;
    }
    weigh<16>(v, 16 * g, spread, w);
    sums[g] = total<16>(w);
    scales[g] = fit_symmetric<16>(v.x + 16 * g, w, 4).scale;
  }
  if (v.weighted) {
    const Symmetric found = fit_symmetric<16>(scales, sums, 32);
    d = found.scale;
    for (int g = 0; g < 16; g++) ls[g] = clamped(nearest(found.inverse * scales[g]), -32, 31);
  } else {
    const F peak = largest<16>(scales), inverse = splat(-32.0f) / peak;
    const I zero = peak == 0.0f;
    d = select(zero, F{}, 1.0f / inverse);
    for (int g = 0; g < 16; g++) ls[g] = select(zero, splat(-32.0f), clamped(nearest(inverse * scales[g]), -32, 31));
  }
  d = out.put_half(108, d);
  for (int g = 0; g < 8; g++)
    out.put(96 + g, (whole(ls[g] + 32.0f) & 15) | (whole(ls[g + 8] + 32.0f) & 15) << 4);
  for (int g = 0; g < 4; g++) {
    I high = {};
    for (int k = 0; k < 4; k++) high |= whole(ls[g + 4 * k] + 32.0f) >> 4 << 2 * k;
    out.put(104 + g, high);
  }
  for (int g = 0; g < 16; g++) recode<16>(v.x + 16 * g, d * ls[g], F{}, -4, 3, codes + 16 * g);
  for (int i = 0; i < 32; i++) {
    I mask = {};
    for (int k = 0; k < 8; k++) mask |= whole(codes[32 * k + i]) >> 2 << k;
    out.put(i, mask);
  }
  put_quarters(out, 32, codes);
}

/// Q4_K and Q5_K: eight groups of 32 with six-bit scales and minima.
template <int BITS>
void encode_q45_k(const Values& v, Blocks& out) {
  constexpr float top = (1 << BITS) - 1;
  F w[32], scales[8], least[8], sums[8], ls[8], lm[8], codes[256], d, dmin;
  const F spread = mean_square<256>(v.x, 2);
  for (int g = 0; g < 8; g++) {
    const F* x = v.x + 32 * g;
    if (v.weighted) {
      weigh<32>(v, 32 * g, spread, w);
      sums[g] = total<32>(w);
    } else {
      const F usual = root(mean_square<32>(x, 1));
      for (int i = 0; i < 32; i++) w[i] = usual + magnitude(x[i]);
    }
    const Affine found = v.weighted   ? fit_affine<32>(x, w, top, -0.9f, 0.05f, 36, false)
                         : BITS == 4 ? fit_affine<32>(x, w, top, -1, 0.1f, 20, false)
                                     : fit_affine<32>(x, w, top, -0.5f, 0.1f, 15, false);
    scales[g] = found.scale, least[g] = found.least;
  }
  if (v.weighted) {
    d = fit_positive<8>(scales, sums, 63, ls), dmin = fit_positive<8>(least, sums, 63, lm);
  } else {
    const auto plain = [](const F* values, F* codes) {
      F high = {};
      for (int g = 0; g < 8; g++) high = max(high, values[g]);
      for (int g = 0; g < 8; g++)
        codes[g] = select(high > 0.0f, clamped(nearest(splat(63.0f) / high * values[g]), 0, 63), F{});
      return high / 63.0f;
    };
    d = plain(scales, ls), dmin = plain(least, lm);
  }
  d = out.put_half(0, d), dmin = out.put_half(2, dmin);
  for (int g = 0; g < 4; g++) {
    out.put(4 + g, whole(ls[g]) | whole(ls[g + 4]) >> 4 << 6);
    out.put(8 + g, whole(lm[g]) | whole(lm[g + 4]) >> 4 << 6);
    out.put(12 + g, (whole(ls[g + 4]) & 15) | (whole(lm[g + 4]) & 15) << 4);
  }
  for (int g = 0; g < 8; g++) recode<32>(v.x + 32 * g, d * ls[g], dmin * lm[g], 0, top, codes + 32 * g);
  if (BITS == 5)
    for (int i = 0; i < 32; i++) {
      I high = {};
      for (int g = 0; g < 8; g++) high |= whole(codes[32 * g + i]) >> 4 << g;
      out.put(16 + i, high);
    }
  for (int pair = 0; pair < 4; pair++)
    for (int i = 0; i < 32; i++)
      out.put((BITS == 5 ? 48 : 16) + 32 * pair + i,
              (whole(codes[64 * pair + i]) & 15) | (whole(codes[64 * pair + 32 + i]) & 15) << 4);
}

inline void encode_q6_k(const Values& v, Blocks& out) {
  F w[16], scales[16], codes[256];
  for (int g = 0; g < 16; g++) {
    for (int i = 0; i < 16; i++) w[i] = v.weighted ? v.importance[16 * g + i] : v.x[16 * g + i] * v.x[16 * g + i];
    scales[g] = fit_symmetric<16>(v.x + 16 * g, w, 32).scale;
  }
  const F peak = largest<16>(scales), inverse = splat(-128.0f) / peak;
  const I zero = magnitude(peak) < no_scale;
  const F d = out.put_half(208, select(zero, F{}, 1.0f / inverse));
  for (int g = 0; g < 16; g++) {
    const F scale = select(zero, F{}, min(splat(127.0f), nearest(inverse * scales[g])));
    out.put(192 + g, whole(scale) & 255);
    recode<16>(v.x + 16 * g, d * scale, F{}, -32, 31, codes + 16 * g);
  }
  for (int half = 0; half < 2; half++)
    for (int i = 0; i < 32; i++) {
      const auto code = [&](int quarter) { return whole(codes[128 * half + 32 * quarter + i]); };
      out.put(64 * half + i, (code(0) & 15) | (code(2) & 15) << 4);
      out.put(64 * half + 32 + i, (code(1) & 15) | (code(3) & 15) << 4);
      out.put(128 + 32 * half + i, code(0) >> 4 | code(1) >> 4 << 2 | code(2) >> 4 << 4 | code(3) >> 4 << 6);
    }
}

/// The four-bit curve of IQ4_NL and IQ4_XS.
constexpr float curve[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/// The value of the curve that is nearest; of two equally near the greater.
inline F on_curve(F v) {
  F out = splat(curve[0]);
  for (int i = 1; i < 16; i++) out = select(v >= 0.5f * (curve[i - 1] + curve[i]), splat(curve[i]), out);
  return out;
}
inline I curve_code(F v) {
  I out = {};
  for (int i = 1; i < 16; i++) out -= v >= 0.5f * (curve[i - 1] + curve[i]);  // a true lane is -1
  return out;
}

/// The best scale of 32 values on the curve, tried at its low end and around it.
inline F fit_curve(const F* x, const F* w) {
  const F peak = largest<32>(x);
  F scale = {}, quality = {};
  for (int t = -8; t <= 7; t++) {
    const F inverse = t == -8 ? 1.0f / (-peak / curve[0]) : splat(static_cast<float>(t) + curve[0]) / peak;
    F xq = {}, q2 = {};
    for (int i = 0; i < 32; i++) {
      const F q = on_curve(inverse * x[i]), wq = w[i] * q;
      xq += wq * x[i], q2 += wq * q;
    }
    const I better = t == -8 ? q2 > 0.0f : (q2 > 0.0f) & (xq * xq > quality * q2);
    scale = select(better, xq / q2, scale), quality = select(better, xq / q2 * xq, quality);
  }
  return select(magnitude(peak) < no_scale, F{}, scale);
}

inline F inverse_of(F scale) { return select(scale != 0.0f, 1.0f / scale, F{}); }

inline void curve_weights(const Values& v, int at, F spread, F* w) {
  if (v.weighted) return weigh<32>(v, at, spread, w);
  for (int i = 0; i < 32; i++) w[i] = v.x[at + i] * v.x[at + i];
}

inline void put_curve(Blocks& out, int at, const F* x, F inverse) {
  for (int i = 0; i < 16; i++) out.put(at + i, curve_code(inverse * x[i]) | curve_code(inverse * x[i + 16]) << 4);
}

inline void encode_iq4_nl(const Values& v, Blocks& out) {
  F w[32];
  curve_weights(v, 0, mean_square<32>(v.x, 2), w);
  const F scale = fit_curve(v.x, w);
  out.put_half(0, scale);
  put_curve(out, 2, v.x, inverse_of(scale));
}

inline void encode_iq4_xs(const Values& v, Blocks& out) {
  F w[32], scales[8];
  I high[2] = {}, codes[8];
  const F spread = mean_square<256>(v.x, 2);
  for (int g = 0; g < 8; g++) {
    curve_weights(v, 32 * g, spread, w);
    scales[g] = fit_curve(v.x + 32 * g, w);
  }
  const F d = -largest<8>(scales) / 32.0f, inverse = inverse_of(d);
  out.put_half(0, d);
  for (int g = 0; g < 8; g++) {
    const F code = clamped(nearest(inverse * scales[g]), -32, 31);
    codes[g] = whole(code + 32.0f);
    high[g / 4] |= codes[g] >> 4 << 2 * (g % 4);
    put_curve(out, 8 + 16 * g, v.x + 32 * g, inverse_of(d * code));
  }
  out.put(2, high[0]), out.put(3, high[1]);
  for (int g = 0; g < 4; g++) out.put(4 + g, (codes[2 * g] & 15) | (codes[2 * g + 1] & 15) << 4);
}

/// The fifth bits of 32 codes in four bytes, then their low four bits, value i beside value i + 16.
template <int BITS>
void put_legacy(Blocks& out, int at, const F* codes) {
  if (BITS == 5)
    for (int byte = 0; byte < 4; byte++, at++) {
      I bits = {};
      for (int i = 0; i < 8; i++) bits |= whole(codes[8 * byte + i]) >> 4 << i;
      out.put(at, bits);
    }
  for (int i = 0; i < 16; i++) out.put(at + i, (whole(codes[i]) & 15) | (whole(codes[i + 16]) & 15) << 4);
}

/// Q4_0 and Q5_0. Without importances the value of largest magnitude becomes the lowest code.
template <int BITS>
void encode_q45_0(const Values& v, Blocks& out) {
  constexpr float levels = 1 << (BITS - 1);
  F w[32], codes[32], scale, inverse;
  if (v.weighted) {
    weigh<32>(v, 0, v.row_mean, w);
    const Symmetric found = fit_symmetric<32>(v.x, w, levels);
    scale = found.scale, inverse = found.inverse;
    for (int i = 0; i < 32; i++) codes[i] = clamped(nearest(inverse * v.x[i]), -levels, levels - 1) + levels;
  } else {
    scale = largest<32>(v.x) / -levels, inverse = inverse_of(scale);
    for (int i = 0; i < 32; i++) {
      const F shifted = min(v.x[i] * inverse + (levels + 0.5f), splat(2 * levels - 1));
      codes[i] = __builtin_convertvector(whole(shifted), F);  // cut off, not rounded: the half is in it
    }
  }
  out.put_half(0, scale);
  put_legacy<BITS>(out, 2, codes);
}

/// Q4_1 and Q5_1.
template <int BITS>
void encode_q45_1(const Values& v, Blocks& out) {
  constexpr float top = (1 << BITS) - 1;
  F w[32], codes[32];
  if (v.weighted) {
    weigh<32>(v, 0, v.row_mean, w);
    const Affine found = fit_affine<32>(v.x, w, top, -0.9f, 0.05f, 36, false);
    out.put_half(0, found.scale), out.put_half(2, -found.least);
    for (int i = 0; i < 32; i++) codes[i] = clamped(nearest(found.inverse * (v.x[i] - found.from)), 0, top);
  } else {
    F low = v.x[0], high = v.x[0];
    for (int i = 1; i < 32; i++) low = min(v.x[i], low), high = max(v.x[i], high);
    const F scale = (high - low) / top, inverse = inverse_of(scale);
    out.put_half(0, scale), out.put_half(2, low);
    for (int i = 0; i < 32; i++) {
      const F shifted = min((v.x[i] - low) * inverse + 0.5f, splat(top));
      codes[i] = __builtin_convertvector(whole(shifted), F);
    }
  }
  put_legacy<BITS>(out, 4, codes);
}

inline void encode_q8_0(const Values& v, Blocks& out) {
  const F scale = magnitude(largest<32>(v.x)) / 127.0f, inverse = inverse_of(scale);
  out.put_half(0, scale);
  for (int i = 0; i < 32; i++) {
    const F code = v.x[i] * inverse;  // halves go away from zero, as C's roundf has it
    const I down = whole(magnitude(code));
    const I size = down - (magnitude(code) - __builtin_convertvector(down, F) >= 0.5f);
    out.put(2 + i, (code < 0.0f ? -size : size) & 255);
  }
}

struct Encoder {
  int64_t values, bytes;
  void (*encode)(const Values&, Blocks&);
};

inline Encoder encoder_of(BlockType type) {
  switch (type) {
    case BlockType::Q4_0: return {32, 18, encode_q45_0<4>};
    case BlockType::Q4_1: return {32, 20, encode_q45_1<4>};
    case BlockType::Q5_0: return {32, 22, encode_q45_0<5>};
    case BlockType::Q5_1: return {32, 24, encode_q45_1<5>};
    case BlockType::Q8_0: return {32, 34, encode_q8_0};
    case BlockType::IQ4_NL: return {32, 18, encode_iq4_nl};
    case BlockType::IQ4_XS: return {256, 136, encode_iq4_xs};
    case BlockType::Q2_K: return {256, 84, encode_q2_k};
    case BlockType::Q3_K: return {256, 110, encode_q3_k};
    case BlockType::Q4_K: return {256, 144, encode_q45_k<4>};
    case BlockType::Q5_K: return {256, 176, encode_q45_k<5>};
    default: return {256, 210, encode_q6_k};
  }
}

/// Rows [first, last) of x [rows, columns]; importance [columns] or null. False where a number is not finite.
inline bool encode_rows(BlockType type, const float* x, const float* importance, int64_t columns, int64_t first,
                        int64_t last, uint8_t* to) {
  const Encoder e = encoder_of(type);
  const int64_t a_row = columns / e.values, end = last * a_row;
  Values v{};
  v.weighted = importance != nullptr;
  Blocks blocks{e.bytes, {}};
  F odd = {};
  float row_mean = 0;
  int64_t known_row = -1;
  for (int64_t from = first * a_row; from < end; from += lanes) {
    const int count = static_cast<int>(std::min<int64_t>(lanes, end - from));
    for (int lane = 0; lane < lanes; lane++) {
      const bool there = lane < count;
      const int64_t block = from + (there ? lane : 0), row = block / a_row;
      const float* values = x + block * e.values;
      const float* columns_of = importance + (block - row * a_row) * e.values;
      for (int64_t i = 0; i < e.values; i++) v.x[i][lane] = there ? values[i] : 0.0f;
      if (!v.weighted) continue;
      for (int64_t i = 0; i < e.values; i++) v.importance[i][lane] = columns_of[i];
      if (e.values == 32 && row != known_row) {
        float sum = 0;
        for (int64_t i = 0; i < columns; i++) sum += x[row * columns + i] * x[row * columns + i];
        known_row = row, row_mean = sum / static_cast<float>(columns);
      }
      v.row_mean[lane] = row_mean;
    }
    for (int64_t i = 0; i < e.values; i++) odd += v.x[i] - v.x[i];
    e.encode(v, blocks);
    std::memcpy(to + from * e.bytes, blocks.memory, count * e.bytes);
  }
  for (int lane = 0; lane < lanes; lane++)
    if (odd[lane] != 0) return false;
  return true;
}

}  // namespace tokenmill::ISA_NAMESPACE::blocks
