// Training's products in matrix tiles. Both sides are packed first into panels of 32 rows, tile after tile as a product
// meets them: a left tile holds 16 rows of 32 values of k, a right one 16 pairs of k of 16 rows. So tiles are loaded from
// memory that lies together, whichever way a side is stored, and both ways cost one pass over it.
#pragma once

namespace tokenmill::ISA_NAMESPACE::training {

/// 16 rows of 16 words, turned over.
inline void transpose(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

inline __mmask32 first_of_32(int64_t count) {
  return count >= 32 ? ~__mmask32{0} : count <= 0 ? 0 : (__mmask32{1} << count) - 1;
}

/// 32 values of k of 16 rows whose k lies together: a row of words each.
inline void load_rows(const Side& side, int64_t row, int64_t rows, int64_t k, int64_t ks, __m512i r[16]) {
  const __mmask32 in_k = first_of_32(ks);
  const uint16_t* from = side.data + row * side.stride + k;
  for (int i = 0; i < 16; i++) {
    _mm_prefetch(reinterpret_cast<const char*>(from + i * side.stride + 128), _MM_HINT_T0);
    r[i] = i < rows ? _mm512_maskz_loadu_epi16(in_k, from + i * side.stride) : _mm512_setzero_si512();
  }
}

/// 32 values of k of 32 rows that lie together: 16 pairs of k, the first 16 rows in `low`, the others in `high`.
inline void load_pairs(const Side& side, int64_t row, int64_t rows, int64_t k, int64_t ks, __m512i low[16],
                       __m512i high[16]) {
  alignas(64) static constexpr auto both = [] {
    struct { uint16_t low[32], high[32]; } at{};
    for (int i = 0; i < 16; i++) {
      at.low[2 * i] = i, at.low[2 * i + 1] = 32 + i;
      at.high[2 * i] = 16 + i, at.high[2 * i + 1] = 48 + i;
    }
    return at;
  }();
  const __m512i take_low = _mm512_loadu_si512(both.low), take_high = _mm512_loadu_si512(both.high);
  const __mmask32 in_rows = first_of_32(rows);
  const uint16_t* from = side.data + k * side.stride + row;
  for (int i = 0; i < 16; i++) {
    _mm_prefetch(reinterpret_cast<const char*>(from + (2 * i + 32) * side.stride), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(from + (2 * i + 33) * side.stride), _MM_HINT_T0);
    const __m512i even = _mm512_maskz_loadu_epi16(2 * i < ks ? in_rows : 0, from + 2 * i * side.stride);
    const __m512i odd = _mm512_maskz_loadu_epi16(2 * i + 1 < ks ? in_rows : 0, from + (2 * i + 1) * side.stride);
    low[i] = _mm512_permutex2var_epi16(even, take_low, odd);
    high[i] = _mm512_permutex2var_epi16(even, take_high, odd);
  }
}

inline void store_tile(uint16_t* to, const __m512i r[16]) {
  for (int i = 0; i < 16; i++) _mm512_store_si512(to + 32 * i, r[i]);
}

/// Panels of 32 rows: of each 32 values of k a tile of the first 16 rows and one of the others; what is not there is zero.
inline void pack_panels(const Side& side, bool right, int64_t row, int64_t rows, int64_t k, int64_t ks, uint16_t* to) {
  const int64_t panel = (ks + 31) / 32 * 1024;
  __m512i tile[2][16];
  for (int64_t s = 0; s < ks; s += 32)
    for (int64_t r = 0; r < rows; r += 32) {
      if (side.across) {
        load_pairs(side, row + r, rows - r, k + s, ks - s, tile[0], tile[1]);
      } else {
        load_rows(side, row + r, rows - r, k + s, ks - s, tile[0]);
        load_rows(side, row + r + 16, rows - r - 16, k + s, ks - s, tile[1]);
      }
      for (int i = 0; i < 2; i++) {
        if (side.across != right) transpose(tile[i]);
        store_tile(to + r / 32 * panel + s * 32 + 512 * i, tile[i]);
      }
    }
}

/// 32 x 32 results of two panels, in four tiles; `sums` [32, 32] is what they add to, unless this is the `first` part of k.
inline void multiply_panels(const uint16_t* left, const uint16_t* right, int64_t steps, bool first, float* sums) {
  if (first) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, 128);
    _tile_loadd(1, sums + 16, 128);
    _tile_loadd(2, sums + 16 * 32, 128);
    _tile_loadd(3, sums + 16 * 33, 128);
  }
  for (int64_t s = 0; s < steps; s++, left += 1024, right += 1024) {
    fetch_tile(left + 1024, 32), fetch_tile(right + 1024, 32);
    _tile_loadd(4, left, 64);
    _tile_loadd(6, right, 64);
    _tile_dpbf16ps(0, 4, 6);
    fetch_tile(right + 1536, 32);
    _tile_loadd(7, right + 512, 64);
    _tile_dpbf16ps(1, 4, 7);
    fetch_tile(left + 1536, 32);
    _tile_loadd(5, left + 512, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, 128);
  _tile_stored(1, sums + 16, 128);
  _tile_stored(2, sums + 16 * 32, 128);
  _tile_stored(3, sums + 16 * 33, 128);
}

/// Results as bfloat16 into y [rows, ldy]. `past`: whole lines go past the caches, into which so many do not fit.
inline void write_results(const float* sums, int64_t rows, int64_t columns, uint16_t* y, int64_t ldy, bool past) {
  const __mmask32 in = first_of_32(columns);
  past = past && columns >= 32 && reinterpret_cast<uintptr_t>(y) % 64 == 0 && ldy % 32 == 0;
  for (int64_t r = 0; r < (rows < 32 ? rows : 32); r++) {
    const __m512i v =
        (__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(sums + r * 32 + 16), _mm512_load_ps(sums + r * 32));
    if (past)
      _mm512_stream_si512(reinterpret_cast<__m512i*>(y + r * ldy), v);
    else
      _mm512_mask_storeu_epi16(y + r * ldy, in, v);
  }
}

inline void multiply_block(const Block& b) {
  const Tiles tiles;
  alignas(64) float room[32 * 32];
  const int64_t panel = b.steps * 1024;
  for (int64_t j = 0; j < b.columns; j += 32)
    for (int64_t i = 0; i < b.rows; i += 32) {
      float* sums = b.sums ? b.sums + (i / 32 * b.ld_sums + j / 32) * 1024 : room;
      multiply_panels(b.left + i / 32 * panel, b.right + j / 32 * panel, b.steps, b.first, sums);
      if (b.last) write_results(sums, b.rows - i, b.columns - j, b.y + i * b.ldy + j, b.ldy, b.past_caches);
    }
  if (b.past_caches) _mm_sfence();
}

}  // namespace tokenmill::ISA_NAMESPACE::training
