// Products with packed weights. One row at a time reads the weights once (bound by memory); many rows take them in
// groups of eight per pass over a panel, which stays in the first-level cache, or go to matrix tiles (amx.inl).
#pragma once

namespace tokenmill::ISA_NAMESPACE {

constexpr Format format_of(Kind kind) { return formats[static_cast<int>(kind)]; }

/// Sixteen rows' codes of one chunk: eight steps of 16 rows x 4 k.
template <Kind KIND>
inline void unpack(const uint8_t* p, u32x16 (&w)[8]) {
  constexpr Format f = format_of(KIND);
  if constexpr (f.bits == 8) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) w[i] = load<u32x16>(p + 64 * i);
    return;
  }
  constexpr bool nibbles = f.bits >= 4;
  if constexpr (nibbles) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; j++) {
      const u32x16 v = load<u32x16>(p + 64 * j);
      w[j] = v & 0x0f0f0f0f;
      w[j + 4] = (v >> 4) & 0x0f0f0f0f;
    }
  }
  constexpr int shift = nibbles ? 4 : 0;  // where the two-bit plane goes
  if constexpr (f.bits == 6 || f.bits < 4) {
    const uint8_t* plane = p + (nibbles ? 256 : 0);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
      const u32x16 v = load<u32x16>(plane + 64 * (i & 1));
      const int at = (i >> 1) * 2;
      const u32x16 two = (at <= shift ? v << (shift - at) : v >> (at - shift)) & (0x03030303u << shift);
      w[i] = nibbles ? w[i] | two : two;
    }
  }
  if constexpr (f.bits == 5 || f.bits == 3) {
    constexpr int high = f.bits - 1;
    const u32x16 v = load<u32x16>(p + 64 * (f.bits - 1));
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) w[i] |= (i <= high ? v << (high - i) : v >> (i - high)) & (0x01010101u << high);
  }
  if constexpr (f.table) {
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) w[i] = lookup16(w[i], iq4_nl_table);
  }
}

/// Scale and minimum of sixteen rows for half a chunk (`half` matters where groups have 16).
template <Kind KIND>
inline void scales_at(const uint8_t* base, int64_t c, int half, int shift, f32x16& scale, f32x16& minimum) {
  constexpr Format f = format_of(KIND);
  constexpr int parts = f.min ? 2 : 1;
  if constexpr (f.sub) {
    constexpr int in_chunk = 32 / f.group;
    const uint8_t* s = base + (c / 8) * parts * (32 + (super / f.group) * 16);
    const uint8_t* group = s + 32 * parts + ((c % 8) * in_chunk + half) * 16 * parts;
    const f32x16 d = from_half(s);
    scale = d * (f.is_signed ? from_i8(reinterpret_cast<const int8_t*>(group)) : from_u8(group));
    if constexpr (f.min) minimum = from_half(s + 32) * from_u8(group + 16);
  } else {
    const uint8_t* s = base + (c >> shift) * parts * 32;
    scale = from_half(s);
    if constexpr (f.min) minimum = from_half(s + 32);
  }
}

/// Panels that one row takes at a time: a core asks memory for more where several streams are open.
constexpr int streams = 2;

/// y[P][M][16] of P panels for M rows of quantised inputs, beginning with row `t`.
template <Kind KIND, int M, int P>
inline void panel_dot(const Weight& w, const uint8_t* panel, const Inputs& in, int64_t t, f32x16 (&y)[P * M]) {
  constexpr Format f = format_of(KIND);
  constexpr int halves = f.group == 16 ? 2 : 1, steps = 8 / halves;
  const int64_t kp = in.padded_k(), chunks = kp / chunk, stride = w.panel_bytes();
  const int64_t scale_step = scale_bytes(f, kp, w.group_shift) / chunks;
#pragma GCC unroll 8
  for (int i = 0; i < P * M; i++) y[i] = splat(0.0f);
  for (int64_t c = 0; c < chunks; c++)
#pragma GCC unroll 4
    for (int p = 0; p < P; p++) {
      u32x16 codes[8];
      const uint8_t* from = panel + p * stride + c * chunk_bytes(f);
      const uint8_t* scales = panel + p * stride + w.code_bytes();
      // One row is bound by memory: ask for the same place of the panels that come next, codes and scales
      if constexpr (M == 1) {
#pragma GCC unroll 8
        for (int i = 0; i < f.bits; i++) __builtin_prefetch(from + P * stride + 64 * i);
        __builtin_prefetch(scales + P * stride + c * scale_step);
      }
      unpack<KIND>(from, codes);
#pragma GCC unroll 2
      for (int half = 0; half < halves; half++) {
        f32x16 scale, minimum;
        scales_at<KIND>(scales, c, half, w.group_shift, scale, minimum);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
          const int16_t* x = in.q + (t + m) * kp + c * chunk + half * 16;
          const int32_t* sums = in.sum + ((t + m) * chunks + c) * 2;
          const int32_t total = halves == 2 ? sums[half] : sums[0] + sums[1];
          Dot dot(f.min ? 0 : -f.offset * total, total);
#pragma GCC unroll 8
          for (int i = 0; i < steps; i++) dot.add(codes[half * steps + i], x + 4 * i);
          const f32x16 sx = splat(in.scale[(t + m) * chunks + c]);
          f32x16& sum = y[p * M + m];
          sum = fma(to_float(dot.sums()), scale * sx, sum);
          if constexpr (f.min) sum = fma(minimum, sx * static_cast<float>(total), sum);
        }
      }
    }
}

/// The same for bfloat16 and float32 weights, whose inputs stay in float32.
template <Kind KIND, int M, int P>
inline void panel_dot_float(const Weight& weight, const uint8_t* panel, const Inputs& in, int64_t t, f32x16 (&y)[P * M]) {
  const int64_t stride = weight.panel_bytes();
#pragma GCC unroll 8
  for (int i = 0; i < P * M; i++) y[i] = splat(0.0f);
  const float* x = in.x + t * in.k;
  if constexpr (KIND == Kind::F32) {
    for (int64_t k = 0; k < in.k; k++)
#pragma GCC unroll 4
      for (int p = 0; p < P; p++) {
        const f32x16 w = load<f32x16>(panel + p * stride + k * 64);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) y[p * M + m] = fma(w, splat(x[m * in.k + k]), y[p * M + m]);
      }
  } else {
    for (int64_t k = 0; k < in.k; k += 2)
#pragma GCC unroll 4
      for (int p = 0; p < P; p++) {
        const u32x16 pair = load<u32x16>(panel + p * stride + k * 32);
        const f32x16 even = as_float(pair << 16), odd = as_float(pair & 0xffff0000u);
#pragma GCC unroll 8
        for (int m = 0; m < M; m++) {
          f32x16& sum = y[p * M + m];
          sum = fma(even, splat(x[m * in.k + k]), sum);
          sum = fma(odd, splat(k + 1 < in.k ? x[m * in.k + k + 1] : 0.0f), sum);
        }
      }
  }
}

inline void write_panel(const Weight& w, int64_t p, f32x16 v, const float* bias, float* y) {
  const int64_t row = p * panel_rows, left = w.n - row;
  if (left >= panel_rows) {
    store(y + row, bias ? v + load<f32x16>(bias + row) : v);
    return;
  }
  float lanes[panel_rows];  // not v[i]: that would keep v in memory for all panels
  store(lanes, v);
  for (int64_t i = 0; i < left; i++) y[row + i] = bias ? lanes[i] + bias[row + i] : lanes[i];
}

template <Kind KIND, int M, int P = 1>
void panel_rows_block(const Weight& w, int64_t p, const Inputs& in, int64_t t, const float* bias, float* y, int64_t ldy) {
  f32x16 out[P * M];
  if constexpr (format_of(KIND).bits == 0) panel_dot_float<KIND, M, P>(w, w.panel(p), in, t, out);
  else panel_dot<KIND, M, P>(w, w.panel(p), in, t, out);
  for (int i = 0; i < P * M; i++) write_panel(w, p + i / M, out[i], bias, y + (t + i % M) * ldy);
}

template <Kind KIND>
void linear_of(const Weight& w, int64_t first, int64_t last, const Inputs& in, const float* bias, float* y, int64_t ldy) {
  int64_t p = first;
  if (in.t == 1)
    for (; p + streams <= last; p += streams) panel_rows_block<KIND, 1, streams>(w, p, in, 0, bias, y, ldy);
  for (; p < last; p++) {
    int64_t t = 0;
    for (; t + 8 <= in.t; t += 8) panel_rows_block<KIND, 8>(w, p, in, t, bias, y, ldy);
    if (t + 4 <= in.t) panel_rows_block<KIND, 4>(w, p, in, t, bias, y, ldy), t += 4;
    if (t + 2 <= in.t) panel_rows_block<KIND, 2>(w, p, in, t, bias, y, ldy), t += 2;
    if (t < in.t) panel_rows_block<KIND, 1>(w, p, in, t, bias, y, ldy);
  }
}

/// Calls `f` with the kind as a template argument.
template <class F>
inline void with_kind(Kind kind, F&& f) {
  switch (kind) {
#define TOKENMILL_KIND(K) \
  case Kind::K:           \
    return f.template operator()<Kind::K>();
    TOKENMILL_KIND(F32) TOKENMILL_KIND(BF16) TOKENMILL_KIND(Q4_0) TOKENMILL_KIND(Q4_1) TOKENMILL_KIND(Q5_0)
    TOKENMILL_KIND(Q5_1) TOKENMILL_KIND(Q8_0) TOKENMILL_KIND(Q2_K) TOKENMILL_KIND(Q3_K) TOKENMILL_KIND(Q4_K)
    TOKENMILL_KIND(Q5_K) TOKENMILL_KIND(Q6_K) TOKENMILL_KIND(IQ4_NL)
#undef TOKENMILL_KIND
    default:;
  }
}

constexpr float largest_input = 127 * 256;

/// One row to blocks of 32 numbers of 16 bits: scale = max |x| / 32512. 8 bits were too few: over all layers they cost
/// 0.6 % of perplexity (docs/performance.md). A block with a number that is not finite yields NaN sums; one
/// without any beyond 1e-30, whose inverse would be infinite, is zero.
inline void quantise(const float* x, int64_t k, int16_t* q, float* scale, int32_t* sum16) {
  for (int64_t at = 0; at < k; at += chunk) {
    float block[32] = {};
    const float* from = x + at;
    if (at + chunk > k) {
      std::memcpy(block, from, (k - at) * sizeof(float));
      from = block;
    }
    const f32x16 a = load<f32x16>(from), b = load<f32x16>(from + 16);
    const f32x16 magnitude = max(a < 0 ? -a : a, b < 0 ? -b : b);
    const bool broken = sum(a * 0.0f + b * 0.0f) != 0.0f;  // NaN or infinity anywhere in the block
    const float top = max(magnitude), largest = top > 1e-30f && !broken ? top : 0.0f;
    scale[at / chunk] = broken ? NAN : largest / largest_input;
    const f32x16 inverse = splat(largest > 0.0f ? largest_input / largest : 0.0f);
    const f32x16 halves[2] = {a, b};
    for (int h = 0; h < 2; h++) {
      const f32x16 v = broken ? splat(0.0f) : halves[h] * inverse;
      const i32x16 n = __builtin_convertvector(v + (v < 0 ? splat(-0.5f) : splat(0.5f)), i32x16);
      store_inputs(q + at + 16 * h, n);
      sum16[at / 16 + h] = sum(n);
    }
  }
}

inline void row_to_bf16(const float* x, int64_t k, uint16_t* b) {
  const int64_t kp = (k + chunk - 1) / chunk * chunk;
  int64_t i = 0;
  for (; i + 16 <= k; i += 16) to_bf16(b + i, load<f32x16>(x + i));
  for (; i < kp; i += 16) {
    float tail[16] = {};
    if (i < k) std::memcpy(tail, x + i, (k - i) * sizeof(float));
    to_bf16(b + i, load<f32x16>(tail));
  }
}

/// Byte `j` of each lane as 1 + byte / 256: its bits become those of a float's mantissa, without a conversion.
inline f32x16 mantissa(u32x16 codes, int j) {
  const u32x16 at = j < 2 ? codes << (15 - 8 * j) : codes >> (8 * j - 15);
  return as_float((at & 0x7f8000u) | 0x3f800000u);
}

/// Calls `put(k, v)` with the sixteen weights of every k of a panel, in float32. `EXACT`: to the last bit; else a weight
/// with a minimum may be 2^-16 of its scale off, for an instruction less, which bfloat16 does not show.
template <Kind KIND, bool EXACT, class Put>
inline void dequantise_panel(const Weight& w, const uint8_t* panel, Put&& put) {
  constexpr Format f = format_of(KIND);
  const int64_t kp = w.padded_k();
  if constexpr (KIND == Kind::F32) {
    for (int64_t k = 0; k < kp; k++) put(k, load<f32x16>(panel + k * 64));
  } else if constexpr (KIND == Kind::BF16) {
    for (int64_t k = 0; k < kp; k += 2) {
      const u32x16 pair = load<u32x16>(panel + k * 32);
      put(k, as_float(pair << 16));
      put(k + 1, as_float(pair & 0xffff0000u));
    }
  } else {
    const uint8_t* scales = panel + w.code_bytes();
    for (int64_t c = 0; c < kp / chunk; c++) {
      u32x16 codes[8];
      unpack<KIND>(panel + c * chunk_bytes(f), codes);
      f32x16 scale, minimum;
#pragma GCC unroll 8
      for (int i = 0; i < 8; i++) {
        if (i % (f.group == 16 ? 4 : 8) == 0) {
          scales_at<KIND>(scales, c, i / 4, w.group_shift, scale, minimum);
          if constexpr (!f.min) minimum = scale * static_cast<float>(-f.offset);
          scale *= 256.0f;
          if constexpr (!EXACT) minimum -= scale;
        }
#pragma GCC unroll 4
        for (int j = 0; j < 4; j++)
          put(c * chunk + 4 * i + j, fma(mantissa(codes[i], j) - (EXACT ? 1.0f : 0.0f), scale, minimum));
      }
    }
  }
}

/// One row of a weight (an embedding).
inline void dequantise(const Weight& w, int64_t row, float* out) {
  with_kind(w.kind, [&]<Kind KIND>() {
    const int64_t lane = row % panel_rows;
    dequantise_panel<KIND, true>(w, w.panel(row / panel_rows), [&](int64_t k, f32x16 v) {
      if (k < w.k) out[k] = v[lane];
    });
  });
}

inline int64_t stream(const uint8_t* from, int64_t bytes) {
  u32x16 sums[8] = {};
  for (int64_t i = 0; i + 512 <= bytes; i += 512)
#pragma GCC unroll 8
    for (int j = 0; j < 8; j++) sums[j] += load<u32x16>(from + i + 64 * j);
  int64_t total = 0;
  for (const u32x16& s : sums)
    for (int i = 0; i < 16; i++) total += s[i];
  return total;
}

}  // namespace tokenmill::ISA_NAMESPACE
