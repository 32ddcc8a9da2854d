// Attention of whole prompts in matrix tiles: scores and weighted values of 16 x 16 at a time, over a bfloat16 cache
// whose panels are tiles already, or an int8 one whose codes become tiles: bfloat16 has all of them exactly.
#pragma once

namespace tokenmill::ISA_NAMESPACE {

/// Tiles 0 to 3, two times two, += tiles 4 and 5 times tiles 6 and 7 of rows `a` (16 apart: `a + down`) and two columns.
inline void multiply_tiles(const uint16_t* a, int64_t lda, int64_t down, const void* left, const void* right, int64_t ldb) {
  _tile_loadd(4, a, lda * 2);
  _tile_loadd(6, left, ldb);
  _tile_dpbf16ps(0, 4, 6);
  _tile_loadd(7, right, ldb);
  _tile_dpbf16ps(1, 4, 7);
  _tile_loadd(5, a + down, lda * 2);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

/// scores[rows of 32][key_tile] = queries [rows, D] times the keys of an even number of panels.
inline void tile_scores(const uint16_t* queries, int64_t d, int64_t rows, const uint8_t* const* panels, int64_t count,
                        float* scores) {
  for (int64_t r = 0; r < rows; r += 32)
    for (int64_t j = 0; j < count; j += 2) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      for (int64_t s = 0; s < d / 32; s++)
        multiply_tiles(queries + r * d + s * 32, d, 16 * d, panels[j] + s * 1024, panels[j + 1] + s * 1024, 64);
      float* to = scores + r * key_tile + j * 16;
      _tile_stored(0, to, key_tile * 4);
      _tile_stored(1, to + 16, key_tile * 4);
      _tile_stored(2, to + 16 * key_tile, key_tile * 4);
      _tile_stored(3, to + 16 * key_tile + 16, key_tile * 4);
    }
}

/// out[rows of 32][D] += weights[rows][key_tile] times `halves` times 32 values.
inline void tile_values(const uint16_t* weights, int64_t d, int64_t rows, const uint8_t* const* values, int64_t halves,
                        float* out) {
  for (int64_t r = 0; r < rows; r += 32)
    for (int64_t i = 0; i < d; i += 32) {
      float* to = out + r * d + i;
      _tile_loadd(0, to, d * 4);
      _tile_loadd(1, to + 16, d * 4);
      _tile_loadd(2, to + 16 * d, d * 4);
      _tile_loadd(3, to + 16 * d + 16, d * 4);
      for (int64_t h = 0; h < halves; h++)
        multiply_tiles(weights + r * key_tile + h * 32, key_tile, 16 * key_tile, values[h] + i * 4, values[h] + i * 4 + 64,
                       d * 4);
      _tile_stored(0, to, d * 4);
      _tile_stored(1, to + 16, d * 4);
      _tile_stored(2, to + 16 * d, d * 4);
      _tile_stored(3, to + 16 * d + 16, d * 4);
    }
}

/// 2^x to 1e-4 of itself, which its rounding to bfloat16 hides. Never below 2^-125: results that are subnormal, or vanish,
/// take a hundred cycles each. NaN stays NaN.
inline f32x16 power_of_two(f32x16 x) {
  const f32x16 inside = _mm512_max_ps(splat(-125.0f), x);
  const f32x16 n = _mm512_roundscale_ps(inside, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), r = inside - n;
  const f32x16 p = fma(fma(fma(splat(0.05517149f), r, splat(0.24261094f)), r, splat(0.69326099f)), r, splat(0.99992808f));
  return _mm512_scalef_ps(p, n);
}

/// Two rows of codes, `step` apart, as pairs of bfloat16.
inline u32x16 code_pairs(const uint8_t* codes, int64_t step) {
  const int8_t* p = reinterpret_cast<const int8_t*>(codes);
  return as_bits(from_i8(p)) >> 16 | as_bits(from_i8(p + step));
}

/// An int8 cache's keys of 16 positions, [D][16], and its values of 32, [32][D], as bfloat16 has them.
inline void keys_to_tiles(const uint8_t* codes, int64_t d, uint8_t* out) {
  for (int64_t i = 0; i < d; i += 2) store(out + i * 32, code_pairs(codes + i * 16, 16));
}
inline void values_to_tiles(const uint8_t* codes, int64_t d, uint8_t* out) {
  for (int64_t j = 0; j < 32; j += 2)
    for (int64_t i = 0; i < d; i += 16) store(out + (j * d + i * 2) * 2, code_pairs(codes + j * d + i, d));
}

/// As attend_tile_of (attention.inl); the head size is a multiple of 32.
template <CacheType TYPE>
void attend_tiles(const Cache& c, const AttentionShape& shape, const Sequence& s, const float* q, int64_t head,
                         int64_t first, int64_t last, float* y, float* scratch) {
  const int64_t d = c.head_dim, ld = shape.heads * d, rows = last - first, key_head = head / (shape.heads / c.heads);
  const int64_t before = s.length - s.count, end = before + last;
  float* p = reinterpret_cast<float*>(aligned(scratch));
  float* out = p + row_tile * key_tile;
  uint16_t* queries = reinterpret_cast<uint16_t*>(out + row_tile * d);
  uint16_t* weights = queries + row_tile * d;
  uint8_t* copy = reinterpret_cast<uint8_t*>(weights + row_tile * key_tile);  // values, and an int8 cache's keys
  float top[row_tile];
  f32x16 total[row_tile];  // of each lane
  std::fill(top, top + row_tile, minus_infinity);
  std::fill(total, total + row_tile, splat(0.0f));
  std::memset(p, 0, (row_tile * (key_tile + d)) * sizeof(float) + row_tile * (d + key_tile) * sizeof(uint16_t));
  for (int64_t r = 0; r < rows; r++) row_to_bf16(q + (s.start + first + r) * ld + head * d, d, queries + r * d);
  const auto low_of = [&](int64_t row) { return shape.window ? std::max<int64_t>(0, before + row + 1 - shape.window) : 0; };
  const Tiles tiles;
  for (int64_t at = low_of(first) / key_tile * key_tile; at < end; at += key_tile) {
    const uint8_t *panels[key_tile / 16], *values[key_tile / 32];
    const int64_t halves = std::min<int64_t>(key_tile / 32, (end - at + 31) / 32);  // of which the last panel may be empty
    f32x16 key_scales[key_tile / 16] = {}, value_scales[key_tile / 16] = {};  // an int8 cache's
    for (int64_t h = 0; h < halves; h++) {
      const int64_t from = at + 32 * h, slot = from % c.block_size;
      const View here = view(c, s, from, key_head);
      for (int64_t j = 0; j < 2; j++) panels[2 * h + j] = here.keys + (slot + 16 * j) * d * element(c);
      values[h] = here.values + slot * d * element(c);
      if constexpr (TYPE == CacheType::BF16) {
        values[h] = clean_tail<TYPE>(values[h], d, std::min<int64_t>(32, end - from), 32, copy);
        continue;
      }
      uint8_t* tiles_of = copy + h * 4 * 32 * d;
      for (int64_t j = 0; j < 2; j++) {
        keys_to_tiles(panels[2 * h + j], d, tiles_of + j * 32 * d);
        panels[2 * h + j] = tiles_of + j * 32 * d;
        key_scales[2 * h + j] = scales_of(c, here.keys, slot + 16 * j);
        value_scales[2 * h + j] = scale_weights(splat(1.0f), scales_of(c, here.values, slot + 16 * j), from + 16 * j, end);
      }
      values_to_tiles(values[h], d, tiles_of + 64 * d);
      values[h] = tiles_of + 64 * d;
    }
    tile_scores(queries, d, rows, panels, 2 * halves, p);
    // where each row sees each key, there is nothing to mask
    const bool open = !shape.softcap && at >= low_of(last - 1) && at + key_tile <= before + first + 1;
    const float to_powers = (open ? shape.scale : 1.0f) * 1.44269504f;  // weights are powers of two, and so are the maxima
    for (int64_t r = 0; r < rows; r++) {
      f32x16 e[key_tile / 16], largest = splat(minus_infinity);
      for (int64_t j = 0; j < key_tile; j += 16) {
        f32x16 v = load<f32x16>(p + r * key_tile + j);
        if constexpr (TYPE == CacheType::I8) v *= key_scales[j / 16];
        e[j / 16] = open ? v : finish_scores(v, shape, at + j, low_of(first + r), std::min(before + first + r + 1, end));
        e[j / 16] *= to_powers;
        largest = max(largest, e[j / 16]);
      }
      if (const float now = max(largest); now > top[r]) {  // seldom, after a few tiles
        const float alpha = top[r] == minus_infinity ? 0.0f : std::exp2(top[r] - now);
        for (int64_t i = 0; i < d; i += 16) store(out + r * d + i, load<f32x16>(out + r * d + i) * alpha);
        total[r] = total[r] * alpha, top[r] = now;
      }
      const float shift = top[r] == minus_infinity ? 0.0f : top[r];
      f32x16 added = splat(0.0f);
      for (int64_t j = 0; j < key_tile; j += 16) {
        const f32x16 weight = power_of_two(e[j / 16] - shift);
        added += weight;
        to_bf16(weights + r * key_tile + j, TYPE == CacheType::I8 ? weight * value_scales[j / 16] : weight);
      }
      total[r] += added;
    }
    tile_values(weights, d, rows, values, halves, out);
  }
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < d; i += 16)
      store(y + (s.start + first + r) * ld + head * d + i, load<f32x16>(out + r * d + i) * (1.0f / sum(total[r])));
}

}  // namespace tokenmill::ISA_NAMESPACE
