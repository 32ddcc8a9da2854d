// Many rows through AMX: panels become bfloat16 in the second-level cache, then 32 x 32 outputs at a time are
// accumulated in four tiles. Bfloat16 rather than int8 tiles: their sums are floats, so a scale for every 32 inputs
// costs nothing, where int8 tiles would have to be emptied and scaled after each group (measured by counting: about 45
// cycles for 8,192 products against 16).
#pragma once

namespace tokenmill::ISA_NAMESPACE {

struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

/// All eight tiles 16 rows of 64 bytes, for as long as this lives.
struct Tiles {
  Tiles() {
    TileConfig config;
    for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
};

/// Asks for the 16 rows of a tile, `stride` values apart, a step before they are loaded: where a neighbour has half of the
/// core (SMT) that makes products a third faster, and where the core is ours a tenth slower.
inline void fetch_tile(const uint16_t* tile, int64_t stride) {
  for (int i = 0; i < 16; i++) _mm_prefetch(reinterpret_cast<const char*>(tile + stride * i), _MM_HINT_T0);
}

/// Two vectors as bfloat16, rounded to nearest (ties away from zero), side by side in each lane.
inline u32x16 bf16_pairs(f32x16 even, f32x16 odd) {
  const u32x16 half = u32x16{} + 0x8000u;
  return (as_bits(even) + half) >> 16 | ((as_bits(odd) + half) & 0xffff0000u);
}

/// A panel as B tiles: [Kp / 32] tiles of 16 pairs of k x 16 rows x 2.
template <Kind KIND>
inline void panel_to_tiles(const Weight& w, const uint8_t* panel, uint16_t* out) {
  if constexpr (KIND == Kind::BF16) {
    std::memcpy(out, panel, w.code_bytes());
  } else {
    f32x16 even;
    dequantise_panel<KIND, false>(w, panel, [&](int64_t k, f32x16 v) {
      if (k % 2 == 0) even = v;
      else store(out + (k / 2) * 32, bf16_pairs(even, v));
    });
  }
}

/// Tiles 0 to 3 += 32 rows of inputs times two panels; the second panel or the second 16 rows may be missing.
inline void multiply_pair(const uint16_t* b0, const uint16_t* b1, const Inputs& in, int64_t t, bool pair) {
  const int64_t kp = in.padded_k(), steps = kp / 32;
  const bool two = t + 16 < in.t;
  const uint16_t *a0 = in.b + t * kp, *a1 = a0 + 16 * kp;
  for (int64_t s = 0; s < steps; s++) {
    fetch_tile(a0 + s * 32 + 32, kp), fetch_tile(b0 + s * 512 + 512, 32);
    _tile_loadd(4, a0 + s * 32, kp * 2);
    _tile_loadd(6, b0 + s * 512, 64);
    _tile_dpbf16ps(0, 4, 6);
    if (pair) {
      fetch_tile(b1 + s * 512 + 512, 32);
      _tile_loadd(7, b1 + s * 512, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (two) {
      fetch_tile(a1 + s * 32 + 32, kp);
      _tile_loadd(5, a1 + s * 32, kp * 2);
      _tile_dpbf16ps(2, 5, 6);
      if (pair) _tile_dpbf16ps(3, 5, 7);
    }
  }
}

/// Tiles 0 and 2 begin with one panel's bias, 1 and 3 with another's: a stride of nothing is the same numbers in each row.
inline void begin_tiles(const float* left, const float* right) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  if (left) {
    _tile_loadd(0, left, 0);
    _tile_loadd(2, left, 0);
  }
  if (right) {
    _tile_loadd(1, right, 0);
    _tile_loadd(3, right, 0);
  }
}

/// Tiles two times two, `ld` floats between rows.
inline void store_tiles(float* left, float* right, int64_t ld) {
  _tile_stored(0, left, ld * 4);
  _tile_stored(1, right, ld * 4);
  _tile_stored(2, left + 16 * ld, ld * 4);
  _tile_stored(3, right + 16 * ld, ld * 4);
}

/// y[32 rows][panels p and p + 1].
inline void linear_pair(const Weight& w, int64_t p, bool pair, const uint16_t* b, const Inputs& in, int64_t t,
                        const float* bias, float* y, int64_t ldy) {
  const bool whole = t + 32 <= in.t && pair && (p + 2) * panel_rows <= w.n;  // tiles go straight to their places
  const float* from = whole && bias ? bias + p * panel_rows : nullptr;
  begin_tiles(from, from ? from + panel_rows : nullptr);
  multiply_pair(b, b + in.padded_k() * 16, in, t, pair);
  if (whole) {
    float* at = y + t * ldy + p * panel_rows;
    return store_tiles(at, at + panel_rows, ldy);
  }
  alignas(64) float tile[32][2][16];
  store_tiles(tile[0][0], tile[0][1], 32);
  const int64_t rows = in.t - t < 32 ? in.t - t : 32;
  for (int64_t r = 0; r < rows; r++)
    for (int i = 0; i < 1 + pair; i++) write_panel(w, p + i, load<f32x16>(tile[r][i]), bias, y + (t + r) * ldy);
}

/// The same panel of two weights for 32 rows, and the gate between them.
inline void gated_pair(int64_t p, int64_t n, const uint16_t* gate, const uint16_t* up, const Inputs& in, int64_t t,
                       const float* gate_bias, const float* up_bias, const Gated& out) {
  const int64_t at = p * panel_rows, rows = in.t - t < 32 ? in.t - t : 32;
  begin_tiles(gate_bias ? gate_bias + at : nullptr, up_bias ? up_bias + at : nullptr);
  multiply_pair(gate, up, in, t, true);
  alignas(64) float tile[32][2][16];
  store_tiles(tile[0][0], tile[0][1], 32);
  for (int64_t r = 0; r < rows; r++) {
    const int64_t place = (t + r) * n + at;
    const f32x16 g = load<f32x16>(tile[r][0]), u = load<f32x16>(tile[r][1]), v = activate(out.kind, g) * u;
    if (out.gate) store(out.gate + place, g);
    if (out.up) store(out.up + place, u);
    if (out.y) store(out.y + place, v);
    if (out.rounded) to_bf16(out.rounded + place, v);
  }
}

/// Room for bfloat16 panels: `scratch` from its first full line on.
inline uint16_t* aligned(float* scratch) {
  return reinterpret_cast<uint16_t*>((reinterpret_cast<uintptr_t>(scratch) + 63) & ~uintptr_t{63});
}

/// A group of panels becomes bfloat16; then each 32 rows meet all of the group, so that inputs stay in the first-level
/// cache and results are written in long runs (512 rows of 1,536 results: 1.9 times the speed of panel by panel).
template <Kind KIND>
void linear_tiles(const Weight& w, int64_t first, int64_t last, const Inputs& in, const float* bias, float* y, int64_t ldy,
                  float* scratch) {
  const int64_t kp = in.padded_k(), group = tile_panels(kp);
  uint16_t* b = aligned(scratch);
  const Tiles tiles;
  for (int64_t from = first; from < last; from += group) {
    const int64_t to = from + group < last ? from + group : last;
    for (int64_t p = from; p < to; p++) panel_to_tiles<KIND>(w, w.panel(p), b + (p - from) * kp * 16);
    for (int64_t t = 0; t < in.t; t += 32)
      for (int64_t p = from; p < to; p += 2) linear_pair(w, p, p + 1 < to, b + (p - from) * kp * 16, in, t, bias, y, ldy);
  }
}

/// Kernels::gated_linear: panels of both weights side by side.
inline void gated_linear(const Weight& gate, const Weight& up, int64_t first, int64_t last, const Inputs& in,
                         const float* gate_bias, const float* up_bias, const Gated& out, float* scratch) {
  const int64_t kp = in.padded_k(), panel = kp * 16, group = tile_panels(kp) / 2;
  uint16_t* b = aligned(scratch);
  const auto to_tiles = [](const Weight& w, int64_t p, uint16_t* out) {
    with_kind(w.kind, [&]<Kind KIND>() { panel_to_tiles<KIND>(w, w.panel(p), out); });
  };
  const Tiles tiles;
  for (int64_t from = first; from < last; from += group) {
    const int64_t to = from + group < last ? from + group : last;
    for (int64_t p = from; p < to; p++) {
      to_tiles(gate, p, b + 2 * (p - from) * panel);
      to_tiles(up, p, b + (2 * (p - from) + 1) * panel);
    }
    for (int64_t t = 0; t < in.t; t += 32)
      for (int64_t p = from; p < to; p++) {
        const uint16_t* at = b + 2 * (p - from) * panel;
        gated_pair(p, gate.n, at, at + panel, in, t, gate_bias, up_bias, out);
      }
  }
}

}  // namespace tokenmill::ISA_NAMESPACE
