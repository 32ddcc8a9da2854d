// Attention over a paged cache. Axes: B blocks · P slots of a block (a multiple of 32) · K key heads · D head size ·
// G queries that share a key head. Sources: Dao et al. 2022 (the running softmax of tiles), Kwon et al. 2023 (pages).
//
// A block's keys lie as panels of 16 positions, exactly as packed weights do, so scores are the product of matmul.inl:
//   keys    bfloat16 [B, K, P/16, D/2, 16, 2]   float32 [B, K, P/16, D, 16]
//   values  bfloat16 [B, K, P/2, D, 2]          float32 [B, K, P, D]
//
// With int8, the head of a block is a record: codes as float32 has its numbers, then a scale for each position,
// float32 [P]. A position's scale multiplies its score once, and the weight of its value.
#pragma once

namespace tokenmill::ISA_NAMESPACE {

constexpr float minus_infinity = -__builtin_inff();

struct View {  // one head of one block
  const uint8_t* keys;
  const uint8_t* values;
};

/// Bytes of a cached number.
inline int64_t element(const Cache& c) { return c.type == CacheType::F32 ? 4 : c.type == CacheType::BF16 ? 2 : 1; }

/// Bytes of one head of one block.
inline int64_t record(const Cache& c) {
  return c.block_size * (c.head_dim * element(c) + (c.type == CacheType::I8 ? sizeof(float) : 0));
}

inline View view(const Cache& c, const Sequence& s, int64_t position, int64_t head) {
  const int64_t block = s.blocks[position / c.block_size];
  const int64_t at = (block * c.heads + head) * record(c);
  return {static_cast<const uint8_t*>(c.keys) + at, static_cast<const uint8_t*>(c.values) + at};
}

/// The scales of 16 positions of an int8 record, from `j` in the block.
inline f32x16 scales_of(const Cache& c, const uint8_t* record, int64_t j) {
  return load<f32x16>(record + c.block_size * c.head_dim + j * sizeof(float));
}

/// One head of one position to 8 bits: scale = max |x| / 127, NaN where a number is not finite.
inline void write_int8(const Cache& c, uint8_t* record, int64_t j, const float* x, int64_t stride, uint8_t* codes) {
  f32x16 largest = splat(0.0f), broken = splat(0.0f);
  for (int64_t i = 0; i < c.head_dim; i += 16) {
    const f32x16 v = load<f32x16>(x + i);
    largest = max(largest, v < 0 ? -v : v);
    broken += v * 0.0f;
  }
  const bool finite = sum(broken) == 0.0f;
  const float top = max(largest), used = finite && top > 1e-30f ? top : 0.0f, inverse = used > 0 ? 127.0f / used : 0.0f;
  const float scale = finite ? used / 127.0f : NAN;
  std::memcpy(record + c.block_size * c.head_dim + j * sizeof(float), &scale, sizeof scale);
  for (int64_t i = 0; i < c.head_dim; i += 16) {
    const f32x16 v = finite ? load<f32x16>(x + i) * inverse : splat(0.0f);
    const i32x16 n = __builtin_convertvector(v + (v < 0 ? splat(-0.5f) : splat(0.5f)), i32x16);
    const i8x16 bytes = __builtin_convertvector(n, i8x16);
    if (stride == 1) store(codes + i, bytes);
    else for (int64_t l = 0; l < 16; l++) codes[(i + l) * stride] = static_cast<uint8_t>(bytes[l]);
  }
}

inline void write_cache(const Cache& c, int64_t slot, const float* k, const float* v) {
  const int64_t block = slot / c.block_size, j = slot % c.block_size, d = c.head_dim;
  for (int64_t h = 0; h < c.heads; h++, k += d, v += d) {
    if (c.type == CacheType::I8) {
      uint8_t* keys = static_cast<uint8_t*>(c.keys) + (block * c.heads + h) * record(c);
      uint8_t* values = static_cast<uint8_t*>(c.values) + (block * c.heads + h) * record(c);
      write_int8(c, keys, j, k, 16, keys + j / 16 * 16 * d + j % 16);
      write_int8(c, values, j, v, 1, values + j * d);
      continue;
    }
    const int64_t at = (block * c.heads + h) * c.block_size * d;
    if (c.type == CacheType::BF16) {
      uint16_t* keys = static_cast<uint16_t*>(c.keys) + at + j / 16 * 16 * d + (j % 16) * 2;
      uint16_t* values = static_cast<uint16_t*>(c.values) + at + j / 2 * 2 * d + j % 2;
      uint16_t kb[16], vb[16];
      for (int64_t i = 0; i < d; i += 16) {  // the head size is a multiple of 16
        to_bf16(kb, load<f32x16>(k + i));
        to_bf16(vb, load<f32x16>(v + i));
        for (int64_t l = 0; l < 16; l++) {
          keys[(i + l) / 2 * 32 + (l & 1)] = kb[l];
          values[(i + l) * 2] = vb[l];
        }
      }
    } else {
      float* keys = static_cast<float*>(c.keys) + at + j / 16 * 16 * d + j % 16;
      for (int64_t i = 0; i < d; i++) keys[i * 16] = k[i];
      std::memcpy(static_cast<float*>(c.values) + at + j * d, v, d * sizeof(float));
    }
  }
}

/// Scores of M rows of queries (row stride `ldq`) with the 16 keys of one panel; int8 still without its scales. Few rows
/// have two sums each: a core begins two products every cycle, and each takes four.
template <CacheType TYPE, int M>
inline void key_scores(const uint8_t* panel, const float* q, int64_t ldq, int64_t d, f32x16 (&out)[M]) {
  constexpr int sums = M <= 4 ? 2 : 1;
  f32x16 odd_out[M];
#pragma GCC unroll 8
  for (int m = 0; m < M; m++) out[m] = odd_out[m] = splat(0.0f);
  for (int64_t i = 0; i < d; i += 2) {
    f32x16 even, odd;
    if constexpr (TYPE == CacheType::BF16) {
      const u32x16 pair = load<u32x16>(panel + i * 32);
      even = as_float(pair << 16), odd = as_float(pair & 0xffff0000u);
    } else if constexpr (TYPE == CacheType::I8) {
      const int8_t* codes = reinterpret_cast<const int8_t*>(panel) + i * 16;
      even = from_i8(codes), odd = from_i8(codes + 16);
    } else {
      even = load<f32x16>(panel + i * 64), odd = load<f32x16>(panel + i * 64 + 64);
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; m++) {
      out[m] = fma(even, splat(q[m * ldq + i]), out[m]);
      f32x16& other = sums == 2 ? odd_out[m] : out[m];
      other = fma(odd, splat(q[m * ldq + i + 1]), other);
    }
  }
  if constexpr (sums == 2)
    for (int m = 0; m < M; m++) out[m] += odd_out[m];
}

/// out[M][F times 16 features] += weights[M][n keys] times the values from `position` on (n even unless it ends the tile).
template <CacheType TYPE, int M, int F>
inline void add_values(const uint8_t* values, int64_t d, int64_t feature, const float* p, int64_t ldp, int64_t n,
                       f32x16 (&out)[M][F]) {
  for (int64_t j = 0; j < n; j += 2) {
#pragma GCC unroll 4
    for (int f = 0; f < F; f++) {
      const int64_t at = feature + 16 * f;
      f32x16 even, odd;
      if constexpr (TYPE == CacheType::BF16) {
        const u32x16 pair = load<u32x16>(values + (j * d + at * 2) * 2);
        even = as_float(pair << 16), odd = as_float(pair & 0xffff0000u);
      } else if constexpr (TYPE == CacheType::I8) {
        const int8_t* codes = reinterpret_cast<const int8_t*>(values) + j * d + at;
        even = from_i8(codes), odd = from_i8(codes + d);
      } else {
        even = load<f32x16>(values + (j * d + at) * 4), odd = load<f32x16>(values + ((j + 1) * d + at) * 4);
      }
#pragma GCC unroll 8
      for (int m = 0; m < M; m++)
        out[m][f] = fma(odd, splat(p[m * ldp + j + 1]), fma(even, splat(p[m * ldp + j]), out[m][f]));
    }
  }
}

/// The same where out lies in memory, M rows of stride `ldo`.
template <CacheType TYPE, int M, int F>
inline void weigh(const uint8_t* values, int64_t d, int64_t feature, const float* p, int64_t ldp, float* out, int64_t ldo) {
  f32x16 v[M][F];
  for (int m = 0; m < M; m++)
    for (int f = 0; f < F; f++) v[m][f] = load<f32x16>(out + m * ldo + feature + 16 * f);
  add_values<TYPE, M, F>(values, d, feature, p, ldp, 32, v);
  for (int m = 0; m < M; m++)
    for (int f = 0; f < F; f++) store(out + m * ldo + feature + 16 * f, v[m][f]);
}

/// Asks for keys or values that are read soon. A cache's blocks lie anywhere, and a core foresees nothing beyond a page:
/// unasked, it would wait for each of them.
inline void fetch(const uint8_t* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + i, 0, 2);
}

inline f32x16 finish_scores(f32x16 s, const AttentionShape& shape, int64_t position, int64_t low, int64_t high) {
  s *= shape.scale;
  if (shape.softcap != 0.0f) s = shape.softcap * tanh(s / shape.softcap);
  if (position < low || position + 16 > high) {
    const i32x16 lane = i32x16{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + static_cast<int32_t>(position);
    s = (lane < static_cast<int32_t>(low)) | (lane >= static_cast<int32_t>(high)) ? splat(minus_infinity) : s;
  }
  return s;
}

/// The weights of 16 values take in the values' scales; what lies at or past `end` weighs nothing, whatever its scale.
inline f32x16 scale_weights(f32x16 weights, f32x16 scales, int64_t position, int64_t end) {
  const i32x16 lane = i32x16{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return lane < static_cast<int32_t>(std::min<int64_t>(16, end - position)) ? weights * scales : splat(0.0f);
}

/// A slot past the end holds whatever the memory held; times zero that could still be NaN. Copy what is real.
template <CacheType TYPE>
inline const uint8_t* clean_tail(const uint8_t* values, int64_t d, int64_t n, int64_t count, uint8_t* copy) {
  if (n == count || TYPE == CacheType::I8) return values;  // integers are never NaN
  const int64_t bytes = TYPE == CacheType::BF16 ? 2 : 4;
  std::memset(copy, 0, count * d * bytes);
  if constexpr (TYPE == CacheType::BF16) {
    std::memcpy(copy, values, n / 2 * 2 * d * bytes);
    if (n % 2)
      for (int64_t i = 0; i < d; i++)
        std::memcpy(copy + ((n - 1) * d + i * 2) * 2, values + ((n - 1) * d + i * 2) * 2, 2);
  } else {
    std::memcpy(copy, values, n * d * bytes);
  }
  return copy;
}

/// Calls `f` with 4 as a template argument for every four of `count`, then with what is left.
template <class F>
inline void in_fours(int64_t count, F&& f) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) f.template operator()<4>(i);
  if (count - i == 3) f.template operator()<3>(i);
  if (count - i == 2) f.template operator()<2>(i);
  if (count - i == 1) f.template operator()<1>(i);
}

/// G queries of one row and one key head over the keys [from, to); `from` and the split size are multiples of 32.
/// out[G][D] = sum of e^(score - max) * value, with max[G] and sum[G]: whoever merges the splits divides. `next`: the
/// key head that comes after this one over the same keys, or -1.
template <CacheType TYPE>
void attend_row_of(const Cache& c, const AttentionShape& shape, const Sequence& s, const float* q, int64_t head,
                   int64_t next, int64_t from, int64_t to, float* out, float* max_out, float* sum_out, float* scratch) {
  const int64_t d = c.head_dim, groups = shape.heads / c.heads, count = (to - from + 31) / 32 * 32, bytes = d * element(c);
  const int64_t low = shape.window ? std::max<int64_t>(0, s.length - shape.window) : 0;
  float* p = scratch;                                                      // [G, count]
  uint8_t* copy = reinterpret_cast<uint8_t*>(scratch + groups * count);  // 32 values
  for (int64_t at = from; at < to; at += 16) {
    const int64_t j = at % c.block_size;
    const View here = view(c, s, at, head);
    fetch(here.values + j * bytes, 16 * bytes);
    in_fours(groups, [&]<int M>(int64_t g) {
      f32x16 v[M];
      key_scores<TYPE, M>(here.keys + j * bytes, q + g * d, d, d, v);
      if constexpr (TYPE == CacheType::I8)
        for (int m = 0; m < M; m++) v[m] *= scales_of(c, here.keys, j);
      for (int m = 0; m < M; m++) store(p + (g + m) * count + at - from, finish_scores(v[m], shape, at, low, to));
    });
  }
  if ((to - from + 15) / 16 % 2)
    for (int64_t g = 0; g < groups; g++) store(p + g * count + count - 16, splat(minus_infinity));
  for (int64_t g = 0; g < groups; g++) {
    f32x16 largest = splat(minus_infinity), total = splat(0.0f);
    for (int64_t i = 0; i < count; i += 16) largest = max(largest, load<f32x16>(p + g * count + i));
    const float top = max(largest), shift = top == minus_infinity ? 0.0f : top;
    for (int64_t i = 0; i < count; i += 16) {
      const f32x16 e = exp(load<f32x16>(p + g * count + i) - shift);
      total += e;
      if constexpr (TYPE == CacheType::I8) {
        if (from + i < to) {
          const f32x16 scales = scales_of(c, view(c, s, from + i, head).values, (from + i) % c.block_size);
          store(p + g * count + i, scale_weights(e, scales, from + i, to));
          continue;
        }
      }
      store(p + g * count + i, e);
    }
    max_out[g] = top;
    sum_out[g] = sum(total);
  }
  std::memset(out, 0, groups * d * sizeof(float));
  for (int64_t at = from; at < to; at += 32) {
    const int64_t j = at % c.block_size;
    if (next >= 0) fetch(view(c, s, at, next).keys + j * bytes, 32 * bytes);
    const uint8_t* values = view(c, s, at, head).values + j * bytes;
    values = clean_tail<TYPE>(values, d, std::min<int64_t>(32, to - at), 32, copy);
    in_fours(groups, [&]<int M>(int64_t g) {
      const float* weights = p + g * count + at - from;
      int64_t i = 0;
      for (; i + 64 <= d; i += 64) weigh<TYPE, M, 4>(values, d, i, weights, count, out + g * d, d);
      for (; i < d; i += 16) weigh<TYPE, M, 1>(values, d, i, weights, count, out + g * d, d);
    });
  }
}

inline void attend_row(const Cache& c, const AttentionShape& shape, const Sequence& s, const float* q, int64_t head,
                       int64_t next, int64_t from, int64_t to, float* out, float* max_out, float* sum_out, float* scratch) {
  const auto of = c.type == CacheType::BF16 ? attend_row_of<CacheType::BF16>
                  : c.type == CacheType::I8 ? attend_row_of<CacheType::I8>
                                            : attend_row_of<CacheType::F32>;
  of(c, shape, s, q, head, next, from, to, out, max_out, sum_out, scratch);
}

constexpr int64_t key_tile = 64, row_tile = 64;

/// Running softmax of a tile: p[rows][key_tile] scores become weights, the old sums shrink by `alpha`.
inline void soften(float* p, int64_t rows, float* top, float* total, float* alpha) {
  for (int64_t r = 0; r < rows; r++) {
    f32x16 largest = splat(minus_infinity), added = splat(0.0f);
    for (int64_t i = 0; i < key_tile; i += 16) largest = max(largest, load<f32x16>(p + r * key_tile + i));
    const float now = std::fmax(top[r], max(largest)), shift = now == minus_infinity ? 0.0f : now;
    for (int64_t i = 0; i < key_tile; i += 16) {
      const f32x16 e = exp(load<f32x16>(p + r * key_tile + i) - shift);
      added += e;
      store(p + r * key_tile + i, e);
    }
    alpha[r] = top[r] == minus_infinity ? 0.0f : std::exp(top[r] - shift);
    total[r] = total[r] * alpha[r] + sum(added);
    top[r] = now;
  }
}

/// Rows [first, last) of a sequence, at most row_tile of them, one query head: y[row] [H, D] normalised.
template <CacheType TYPE>
void attend_tile_of(const Cache& c, const AttentionShape& shape, const Sequence& s, const float* q, int64_t head,
                    int64_t first, int64_t last, float* y, float* scratch) {
  const int64_t d = c.head_dim, ld = shape.heads * d, rows = last - first, key_head = head / (shape.heads / c.heads);
  const int64_t before = s.length - s.count;  // keys before this pass
  float* p = scratch;                         // [row_tile, key_tile]
  float* out = p + row_tile * key_tile;       // [row_tile, D]
  uint8_t* copy = reinterpret_cast<uint8_t*>(out + row_tile * d);
  float top[row_tile], total[row_tile], alpha[row_tile];
  std::fill(top, top + row_tile, minus_infinity);
  std::fill(total, total + row_tile, 0.0f);
  std::fill(out, out + row_tile * d, 0.0f);
  const float* queries = q + (s.start + first) * ld + head * d;
  const auto low_of = [&](int64_t row) { return shape.window ? std::max<int64_t>(0, before + row + 1 - shape.window) : 0; };
  const int64_t end = before + last;
  for (int64_t at = low_of(first) / key_tile * key_tile; at < end; at += key_tile) {
    const auto scores = [&]<int M>(int64_t r, int64_t j) {
      f32x16 v[M];
      const uint8_t* keys = view(c, s, at + j, key_head).keys;
      key_scores<TYPE, M>(keys + (at + j) % c.block_size * d * element(c), queries + r * ld, ld, d, v);
      if constexpr (TYPE == CacheType::I8)
        for (int m = 0; m < M; m++) v[m] *= scales_of(c, keys, (at + j) % c.block_size);
      for (int m = 0; m < M; m++)
        store(p + (r + m) * key_tile + j,
              finish_scores(v[m], shape, at + j, low_of(first + r + m), before + first + r + m + 1));
    };
    for (int64_t j = 0; j < key_tile; j += 16) {
      if (at + j >= end) {
        for (int64_t r = 0; r < rows; r++) store(p + r * key_tile + j, splat(minus_infinity));
        continue;
      }
      int64_t r = 0;
      for (; r + 8 <= rows; r += 8) scores.template operator()<8>(r, j);
      for (; r < rows; r++) scores.template operator()<1>(r, j);
    }
    soften(p, rows, top, total, alpha);
    if constexpr (TYPE == CacheType::I8)
      for (int64_t j = 0; j < key_tile && at + j < end; j += 16) {
        const f32x16 scales = scales_of(c, view(c, s, at + j, key_head).values, (at + j) % c.block_size);
        for (int64_t r = 0; r < rows; r++) {
          float* weights = p + r * key_tile + j;
          store(weights, scale_weights(load<f32x16>(weights), scales, at + j, end));
        }
      }
    for (int64_t r = 0; r < rows; r++)
      for (int64_t i = 0; i < d; i += 16) store(out + r * d + i, load<f32x16>(out + r * d + i) * alpha[r]);
    for (int64_t j = 0; j < key_tile && at + j < end; j += 32) {
      const uint8_t* values = view(c, s, at + j, key_head).values + (at + j) % c.block_size * d * element(c);
      values = clean_tail<TYPE>(values, d, std::min<int64_t>(32, end - at - j), 32, copy);
      const float* weights = p + j;
      for (int64_t i = 0; i < d; i += 16) {
        int64_t r = 0;
        for (; r + 8 <= rows; r += 8) weigh<TYPE, 8, 1>(values, d, i, weights + r * key_tile, key_tile, out + r * d, d);
        for (; r < rows; r++) weigh<TYPE, 1, 1>(values, d, i, weights + r * key_tile, key_tile, out + r * d, d);
      }
    }
  }
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < d; i += 16)
      store(y + (s.start + first + r) * ld + head * d + i, load<f32x16>(out + r * d + i) * (1.0f / total[r]));
}

inline void attend_tile(const Cache& c, const AttentionShape& shape, const Sequence& s, const float* q, int64_t head,
                        int64_t first, int64_t last, float* y, float* scratch) {
  const auto of = c.type == CacheType::BF16 ? attend_tile_of<CacheType::BF16>
                  : c.type == CacheType::I8 ? attend_tile_of<CacheType::I8>
                                            : attend_tile_of<CacheType::F32>;
  of(c, shape, s, q, head, first, last, y, scratch);
}

}  // namespace tokenmill::ISA_NAMESPACE
