#include "pack.h"

#include <algorithm>
#include <cstring>
#include <vector>

namespace tokenmill {
namespace {

/// One row, taken apart: a code for each weight, and its groups' scales in the order of formats.h.
struct Row {
  uint8_t* codes;                  // [Kp]
  std::vector<uint16_t> scale, minimum;          // half precision: of groups, or of each 256 with sub-scales
  std::vector<uint8_t> sub_scale, sub_minimum;   // of groups
};

uint16_t half_at(const uint8_t* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  return h;
}

// The blocks below are those of ggml's `ggml-common.h`, as formats/gguf/decode_*.py reads them.

void read_legacy(Kind kind, const uint8_t* b, int64_t at, Row& row) {
  uint8_t* codes = row.codes + at;
  row.scale.push_back(half_at(b));
  b += 2;
  if (kind == Kind::Q8_0) {
    for (int i = 0; i < 32; i++) codes[i] = static_cast<uint8_t>(b[i] ^ 0x80);  // signed to unsigned: + 128
    return;
  }
  if (kind == Kind::Q4_1 || kind == Kind::Q5_1) row.minimum.push_back(half_at(b)), b += 2;
  uint32_t high = 0;
  if (kind == Kind::Q5_0 || kind == Kind::Q5_1) std::memcpy(&high, b, 4), b += 4;
  for (int i = 0; i < 16; i++) {
    codes[i] = static_cast<uint8_t>((b[i] & 15) | (high >> i & 1) << 4);
    codes[i + 16] = static_cast<uint8_t>((b[i] >> 4) | (high >> (i + 16) & 1) << 4);
  }
}

/// The 6-bit scales and minima of Q4_K and Q5_K.
void read_scales_4k(const uint8_t* s, Row& row) {
  for (int j = 0; j < 8; j++) {
    row.sub_scale.push_back(j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
    row.sub_minimum.push_back(j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | (s[j] >> 6) << 4);
  }
}

void read_k(Kind kind, const uint8_t* b, int64_t at, Row& row) {
  uint8_t* codes = row.codes + at;
  const auto minus = [](const uint8_t* p) { return static_cast<uint16_t>(half_at(p) ^ 0x8000); };
  if (kind == Kind::Q4_K || kind == Kind::Q5_K) {
    row.scale.push_back(half_at(b));
    row.minimum.push_back(minus(b + 2));
    read_scales_4k(b + 4, row);
    const uint8_t* high = b + 16;
    const uint8_t* low = kind == Kind::Q5_K ? b + 48 : b + 16;
    for (int g = 0; g < 8; g++)
      for (int l = 0; l < 32; l++) {
        const int nibble = low[g / 2 * 32 + l] >> (4 * (g % 2)) & 15;
        codes[g * 32 + l] = static_cast<uint8_t>(nibble | (kind == Kind::Q5_K ? (high[l] >> g & 1) << 4 : 0));
      }
  } else if (kind == Kind::Q6_K) {
    for (int e = 0; e < 256; e++) {
      const int half = e / 128, part = e % 128 / 32, l = e % 32;
      const int low = b[half * 64 + l + 32 * (part % 2)] >> (4 * (part / 2)) & 15;
      codes[e] = static_cast<uint8_t>(low | (b[128 + half * 32 + l] >> (2 * part) & 3) << 4);
    }
    for (int g = 0; g < 16; g++) row.sub_scale.push_back(b[192 + g]);
    row.scale.push_back(half_at(b + 208));
  } else {  // Q2_K, Q3_K
    const bool three = kind == Kind::Q3_K;
    const uint8_t* low = b + (three ? 32 : 16);
    for (int e = 0; e < 256; e++) {
      const int half = e / 128, part = e % 128 / 32, l = e % 32;
      codes[e] = low[half * 32 + l] >> (2 * part) & 3;
      if (three) codes[e] |= static_cast<uint8_t>((b[l] >> (half * 4 + part) & 1) << 2);
    }
    if (three) {
      const uint8_t* s = b + 96;
      for (int g = 0; g < 16; g++) {
        const int low4 = s[g % 8] >> (4 * (g / 8)) & 15, high2 = s[8 + g % 4] >> (2 * (g / 4)) & 3;
        row.sub_scale.push_back(static_cast<uint8_t>((low4 | high2 << 4) - 32));
      }
      row.scale.push_back(half_at(b + 108));
    } else {
      for (int g = 0; g < 16; g++) row.sub_scale.push_back(b[g] & 15), row.sub_minimum.push_back(b[g] >> 4);
      row.scale.push_back(half_at(b + 80));
      row.minimum.push_back(minus(b + 82));
    }
  }
}

struct Block {
  int weights, bytes;
};
Block block_of(Kind kind) {
  switch (kind) {
    case Kind::F32: return {1, 4};
    case Kind::BF16: return {1, 2};
    case Kind::Q4_0:
    case Kind::IQ4_NL: return {32, 18};
    case Kind::Q4_1: return {32, 20};
    case Kind::Q5_0: return {32, 22};
    case Kind::Q5_1: return {32, 24};
    case Kind::Q8_0: return {32, 34};
    case Kind::Q2_K: return {256, 84};
    case Kind::Q3_K: return {256, 110};
    case Kind::Q4_K: return {256, 144};
    case Kind::Q5_K: return {256, 176};
    default: return {256, 210};
  }
}

/// The codes of 16 rows (a chunk of 32 each, `stride` bytes apart) to the planes of one chunk.
void write_chunk(const Format& f, const uint8_t* codes, int64_t stride, uint8_t* out) {
  uint8_t steps[8][64];
  for (int i = 0; i < 8; i++)
    for (int r = 0; r < 16; r++) std::memcpy(steps[i] + 4 * r, codes + r * stride + 4 * i, 4);
  if (f.bits == 8) {
    std::memcpy(out, steps, sizeof steps);
    return;
  }
  int shift = 0;
  std::memset(out, 0, chunk_bytes(f));
  if (f.bits >= 4) {
    for (int j = 0; j < 4; j++)
      for (int b = 0; b < 64; b++) out[64 * j + b] = static_cast<uint8_t>((steps[j][b] & 15) | (steps[j + 4][b] & 15) << 4);
    out += 256, shift = 4;
  }
  if (f.bits == 6 || f.bits < 4) {
    for (int i = 0; i < 8; i++)
      for (int b = 0; b < 64; b++)
        out[64 * (i & 1) + b] |= static_cast<uint8_t>((steps[i][b] >> shift & 3) << (i >> 1) * 2);
    out += 128, shift += 2;
  }
  if (f.bits == 5 || f.bits == 3)
    for (int i = 0; i < 8; i++)
      for (int b = 0; b < 64; b++) out[b] |= static_cast<uint8_t>((steps[i][b] >> shift & 1) << i);
}

void write_scales(const Weight& w, int64_t lane, const Row& row, uint8_t* out) {
  const Format& f = w.format();
  const int64_t parts = f.min ? 2 : 1;
  if (!f.sub) {
    for (size_t g = 0; g < row.scale.size(); g++, out += 32 * parts) {
      std::memcpy(out + 2 * lane, &row.scale[g], 2);
      if (f.min) std::memcpy(out + 32 + 2 * lane, &row.minimum[g], 2);
    }
    return;
  }
  const size_t groups = super / f.group;
  for (size_t s = 0; s < row.scale.size(); s++) {
    std::memcpy(out + 2 * lane, &row.scale[s], 2);
    if (f.min) std::memcpy(out + 32 + 2 * lane, &row.minimum[s], 2);
    out += 32 * parts;
    for (size_t g = 0; g < groups; g++, out += 16 * parts) {
      out[lane] = row.sub_scale[s * groups + g];
      if (f.min) out[16 + lane] = row.sub_minimum[s * groups + g];
    }
  }
}

void pack_floats(const Weight& w, int64_t p, const uint8_t* rows, uint8_t* out) {
  const int64_t size = w.kind == Kind::F32 ? 4 : 2, pair = w.kind == Kind::F32 ? 1 : 2;
  for (int64_t r = 0; r < std::min<int64_t>(16, w.n - p * 16); r++)
    for (int64_t k = 0; k < w.k; k++)
      std::memcpy(out + ((k / pair * 16 + r) * pair + k % pair) * size, rows + ((p * 16 + r) * w.k + k) * size, size);
}

}  // namespace

Kind kind_of(const char* name) {
  constexpr const char* names[] = {"F32",  "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1",  "Q8_0",
                                   "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"};
  for (int i = 0; i < static_cast<int>(Kind::Count); i++)
    if (!std::strcmp(name, names[i])) return static_cast<Kind>(i);
  return Kind::Count;
}

int64_t gguf_row_bytes(Kind kind, int64_t k) {
  const Block block = block_of(kind);
  return k / block.weights * block.bytes;
}

void pack_panel(const Weight& w, int64_t p, const uint8_t* rows, uint8_t* out) {
  std::memset(out, 0, w.panel_bytes());
  if (w.format().bits == 0) return pack_floats(w, p, rows, out);
  const Block block = block_of(w.kind);
  const int64_t row_bytes = gguf_row_bytes(w.kind, w.k);
  std::vector<uint8_t> codes(16 * w.k);
  for (int64_t r = 0; r < std::min<int64_t>(16, w.n - p * 16); r++) {
    Row row{codes.data() + r * w.k, {}, {}, {}, {}};
    for (int64_t i = 0; i < w.k / block.weights; i++) {
      const uint8_t* b = rows + (p * 16 + r) * row_bytes + i * block.bytes;
      (w.format().sub ? read_k : read_legacy)(w.kind, b, i * block.weights, row);
    }
    write_scales(w, r, row, out + w.code_bytes());
  }
  for (int64_t c = 0; c < w.k / chunk; c++)
    write_chunk(w.format(), codes.data() + c * chunk, w.k, out + c * chunk_bytes(w.format()));
}

void pack_codes(const Weight& w, int64_t p, const uint8_t* codes, const uint16_t* scales, const uint16_t* minima,
                uint8_t* out) {
  std::memset(out, 0, w.panel_bytes());
  const int64_t kp = w.padded_k(), groups = ((kp / chunk - 1) >> w.group_shift) + 1;
  std::vector<uint8_t> padded(16 * kp);
  for (int64_t r = 0; r < std::min<int64_t>(16, w.n - p * 16); r++) {
    const int64_t n = p * 16 + r;
    std::memcpy(padded.data() + r * kp, codes + n * w.k, w.k);
    Row row{nullptr, {scales + n * groups, scales + (n + 1) * groups}, {}, {}, {}};
    if (minima) row.minimum.assign(minima + n * groups, minima + (n + 1) * groups);
    write_scales(w, r, row, out + w.code_bytes());
  }
  for (int64_t c = 0; c < kp / chunk; c++)
    write_chunk(w.format(), padded.data() + c * chunk, kp, out + c * chunk_bytes(w.format()));
}

}  // namespace tokenmill
