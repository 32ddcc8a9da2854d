// How packed weights lie in memory. One layout for all instruction sets, so that a packed file serves every machine.
//
// A weight matrix [N, K] is cut into panels of 16 output rows. Inside a panel, K goes in chunks of 32; a chunk holds
// 16 x 32 codes such that one 64-byte vector is 16 rows times 4 neighbouring k ("a step"), the shape in which VNNI and
// NEON multiply. Eight steps are a chunk. Codes of fewer than 8 bits are split into planes:
//
//   4-bit plane  4 vectors: vector j has step j in its low nibbles and step j + 4 in its high ones
//   2-bit plane  2 vectors: vector j has steps j, j + 2, j + 4, j + 6 at bits 0, 2, 4, 6
//   1-bit plane  1 vector: step i at bit i
//
// 5 bits are 4 + 1, 6 are 4 + 2, 3 are 2 + 1 (the smaller plane has the high bits). After a panel's codes come its scales:
//
//   plain  for each group: 16 half-precision scales, then 16 minima if the format has them
//   sub    for each 256 of K: 16 half-precision super-scales (then super-minima), then for each group 16 bytes of
//          sub-scales (then sub-minima), as GGUF's K-quants have them
//
// A weight is scale * (code - offset), or scale * code + minimum. bfloat16 and float32 panels are [K/2][16][2] and
// [K][16]; K is padded to 32 with zeros everywhere.
#pragma once

#include <cstddef>
#include <cstdint>

// These files are compiled with several instruction sets; a function that were not inlined could be linked from the
// wrong one and crash an older machine.
#define TOKENMILL_INLINE __attribute__((always_inline)) inline

namespace tokenmill {

enum class Kind : int { F32, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, Count };

struct Format {
  int bits;       // 0: floating point
  int group;      // weights that share a scale: 16 or 32; more with Weight::group_shift
  bool sub;       // sub-scales under a super-scale
  bool min;       // has minima; else an offset
  int offset;
  bool is_signed;  // sub-scales are signed
  bool table;     // codes index IQ4_NL's table
};

constexpr Format formats[] = {
    {0, 0, false, false, 0, false, false},    // F32
    {0, 0, false, false, 0, false, false},    // BF16
    {4, 32, false, false, 8, false, false},   // Q4_0
    {4, 32, false, true, 0, false, false},    // Q4_1
    {5, 32, false, false, 16, false, false},  // Q5_0
    {5, 32, false, true, 0, false, false},    // Q5_1
    {8, 32, false, false, 128, false, false}, // Q8_0
    {2, 16, true, true, 0, false, false},     // Q2_K
    {3, 16, true, false, 4, true, false},     // Q3_K
    {4, 32, true, true, 0, false, false},     // Q4_K
    {5, 32, true, true, 0, false, false},     // Q5_K
    {6, 16, true, false, 32, true, false},    // Q6_K
    {4, 32, false, false, 128, false, true},  // IQ4_NL
};

/// IQ4_NL's sixteen values, plus 128 (so that they are unsigned; the offset takes it away).
constexpr uint8_t iq4_nl_table[16] = {1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241};

constexpr int64_t panel_rows = 16, chunk = 32, super = 256;

constexpr int64_t chunk_bytes(const Format& f) { return 64 * f.bits; }  // 16 * 32 codes

/// Bytes of scales for `k` (a multiple of 32) inputs of one panel.
constexpr int64_t scale_bytes(const Format& f, int64_t k, int group_shift) {
  const int parts = f.min ? 2 : 1;
  if (f.sub) return (k / super) * parts * (32 + (super / f.group) * 16);
  const int64_t groups = f.group == 32 ? ((k / chunk - 1) >> group_shift) + 1 : k / f.group;
  return groups * parts * 32;
}

struct Weight {
  Kind kind;
  int64_t n, k;         // as the model has them
  int group_shift;      // a plain format's scale covers 32 << group_shift inputs (31: one a row)
  const uint8_t* data;  // panels, one after the other, aligned to 64

  TOKENMILL_INLINE const Format& format() const { return formats[static_cast<int>(kind)]; }
  TOKENMILL_INLINE int64_t padded_k() const { return (k + chunk - 1) / chunk * chunk; }
  TOKENMILL_INLINE int64_t panels() const { return (n + panel_rows - 1) / panel_rows; }
  TOKENMILL_INLINE int64_t code_bytes() const {
    if (kind == Kind::F32) return padded_k() * 64;
    if (kind == Kind::BF16) return padded_k() * 32;
    return padded_k() / chunk * chunk_bytes(format());
  }
  TOKENMILL_INLINE int64_t panel_bytes() const {
    const int64_t scales = format().bits ? scale_bytes(format(), padded_k(), group_shift) : 0;
    return (code_bytes() + scales + 63) / 64 * 64;
  }
  TOKENMILL_INLINE const uint8_t* panel(int64_t p) const { return data + p * panel_bytes(); }
};

}  // namespace tokenmill
