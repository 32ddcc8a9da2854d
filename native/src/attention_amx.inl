// Attention of whole prompts in matrix tiles: scores and weighted values of 16 x 16 at a time, over a bfloat16 cache
// whose panels are tiles already.
#pragma once

namespace tokenmill::ISA_NAMESPACE {

/// scores[rows of 16][key_tile] = queries [rows, D] times the keys of `panels` panels.
inline void tile_scores(const uint16_t* queries, int64_t d, int64_t row_tiles, const uint8_t* const* panels, int64_t count,
                        float* scores) {
  for (int64_t r = 0; r < row_tiles; r++)
    for (int64_t j = 0; j < count; j += 2) {
      const bool pair = j + 1 < count;
      _tile_zero(0);
      _tile_zero(1);
      for (int64_t s = 0; s < d / 32; s++) {
        _tile_loadd(4, queries + r * 16 * d + s * 32, d * 2);
        _tile_loadd(6, panels[j] + s * 1024, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (pair) {
          _tile_loadd(7, panels[j + 1] + s * 1024, 64);
          _tile_dpbf16ps(1, 4, 7);
        }
      }
      _tile_stored(0, scores + r * 16 * key_tile + j * 16, key_tile * 4);
      if (pair) _tile_stored(1, scores + r * 16 * key_tile + j * 16 + 16, key_tile * 4);
    }
}

/// out[rows of 16][D] += weights[rows][key_tile] times `halves` times 32 values.
inline void tile_values(const uint16_t* weights, int64_t d, int64_t row_tiles, const uint8_t* const* values, int64_t halves,
                        float* out) {
  for (int64_t r = 0; r < row_tiles; r++)
    for (int64_t i = 0; i < d; i += 32) {
      float* to = out + r * 16 * d + i;
      _tile_loadd(0, to, d * 4);
      _tile_loadd(1, to + 16, d * 4);
      for (int64_t h = 0; h < halves; h++) {
        _tile_loadd(4, weights + r * 16 * key_tile + h * 32, key_tile * 2);
        _tile_loadd(6, values[h] + i * 4, d * 4);
        _tile_loadd(7, values[h] + i * 4 + 64, d * 4);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
      }
      _tile_stored(0, to, d * 4);
      _tile_stored(1, to + 16, d * 4);
    }
}

/// As attend_tile_of (attention.inl); the head size is a multiple of 32 and the cache bfloat16.
inline void attend_tiles(const Cache& c, const AttentionShape& shape, const Sequence& s, const float* q, int64_t head,
                         int64_t first, int64_t last, float* y, float* scratch) {
  const int64_t d = c.head_dim, ld = shape.heads * d, rows = last - first, key_head = head / (shape.heads / c.heads);
  const int64_t before = s.length - s.count, end = before + last, row_tiles = (rows + 15) / 16;
  float* p = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(scratch) + 63) & ~uintptr_t{63});
  float* out = p + row_tile * key_tile;
  uint16_t* queries = reinterpret_cast<uint16_t*>(out + row_tile * d);
  uint16_t* weights = queries + row_tile * d;
  uint8_t* copy = reinterpret_cast<uint8_t*>(weights + row_tile * key_tile);
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
    const int64_t count = std::min<int64_t>(key_tile / 16, (end - at + 15) / 16), halves = (count + 1) / 2;
    for (int64_t j = 0; j < count; j++)
      panels[j] = view(c, s, at + 16 * j, key_head).keys + (at + 16 * j) % c.block_size * d * 2;
    for (int64_t h = 0; h < halves; h++) {
      const int64_t from = at + 32 * h;
      values[h] = clean_tail<CacheType::BF16>(view(c, s, from, key_head).values + from % c.block_size * d * 2, d,
                                   std::min<int64_t>(32, end - from), 32, copy);
    }
    tile_scores(queries, d, row_tiles, panels, count, p);
    // where each row sees each key, there is nothing to mask
    const bool open = !shape.softcap && at >= low_of(last - 1) && at + key_tile <= before + first + 1;
    for (int64_t r = 0; r < rows; r++) {
      f32x16 e[key_tile / 16], largest = splat(minus_infinity);
      for (int64_t j = 0; j < key_tile; j += 16) {
        const f32x16 v = load<f32x16>(p + r * key_tile + j);
        e[j / 16] = open ? v * shape.scale
                         : finish_scores(v, shape, at + j, low_of(first + r), std::min(before + first + r + 1, end));
        largest = max(largest, e[j / 16]);
      }
      if (const float now = max(largest); now > top[r]) {  // seldom, after a few tiles
        const float alpha = top[r] == minus_infinity ? 0.0f : std::exp(top[r] - now);
        for (int64_t i = 0; i < d; i += 16) store(out + r * d + i, load<f32x16>(out + r * d + i) * alpha);
        total[r] = total[r] * alpha, top[r] = now;
      }
      const float shift = top[r] == minus_infinity ? 0.0f : top[r];
      for (int64_t j = 0; j < key_tile; j += 16) {
        const f32x16 weight = exp(e[j / 16] - shift);
        total[r] += weight;
        to_bf16(weights + r * key_tile + j, weight);
      }
    }
    tile_values(weights, d, row_tiles, values, halves, out);
  }
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < d; i += 16)
      store(y + (s.start + first + r) * ld + head * d + i, load<f32x16>(out + r * d + i) * (1.0f / sum(total[r])));
}

}  // namespace tokenmill::ISA_NAMESPACE
