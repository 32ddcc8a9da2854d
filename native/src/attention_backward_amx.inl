// attention_backward.inl's products in matrix tiles, for tensors of bfloat16 and heads of 32, 64, 96, 128 … features.
#pragma once

namespace tokenmill::ISA_NAMESPACE::training {

struct TiledProducts {
  using Number = uint16_t;
  static constexpr int64_t pair = 2;
  static void row(uint16_t* to, f32x16 v) { to_bf16(to, v); }
  static void two_rows(uint16_t* to, int64_t, int64_t column, f32x16 even, f32x16 odd) {
    const __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(even));
    const __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh(odd));
    _mm512_storeu_si512(to + column, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
  static void across(uint16_t* to, int64_t columns, int64_t r, int64_t feature, f32x16 v) {
    uint32_t pairs[8];
    to_bf16(reinterpret_cast<uint16_t*>(pairs), v);
    for (int64_t l = 0; l < 8; l++) std::memcpy(to + ((feature / 2 + l) * columns + r) * 2, pairs + l, sizeof *pairs);
  }
  /// As Floats::multiply; M, N and K are multiples of 32.
  static void multiply(int64_t m, int64_t n, int64_t k, const uint16_t* a, int64_t lda, const uint16_t* b, float* c,
                       bool add) {
    for (int64_t i = 0; i < m; i += 32)
      for (int64_t j = 0; j < n; j += 32) {
        float* to = c + i * n + j;
        if (add) {
          _tile_loadd(0, to, n * 4);
          _tile_loadd(1, to + 16, n * 4);
          _tile_loadd(2, to + 16 * n, n * 4);
          _tile_loadd(3, to + 16 * n + 16, n * 4);
        } else {
          _tile_zero(0);
          _tile_zero(1);
          _tile_zero(2);
          _tile_zero(3);
        }
        for (int64_t l = 0; l < k; l += 32) {
          _tile_loadd(4, a + i * lda + l, lda * 2);
          _tile_loadd(6, b + l * n + j * 2, n * 4);
          _tile_dpbf16ps(0, 4, 6);
          _tile_loadd(7, b + l * n + j * 2 + 32, n * 4);
          _tile_dpbf16ps(1, 4, 7);
          _tile_loadd(5, a + (i + 16) * lda + l, lda * 2);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
        _tile_stored(0, to, n * 4);
        _tile_stored(1, to + 16, n * 4);
        _tile_stored(2, to + 16 * n, n * 4);
        _tile_stored(3, to + 16 * n + 16, n * 4);
      }
  }
  using Session = Tiles;
};

}  // namespace tokenmill::ISA_NAMESPACE::training
