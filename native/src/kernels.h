// The table of kernels that each instruction set fills. Axes: T rows of activations, K inputs, N outputs.
#pragma once

#include "encode.h"
#include "formats.h"

namespace tokenmill {

/// The inputs of a product, prepared once for all the weights that multiply them. K is padded to 32 in q and b.
struct Inputs {
  const float* x;        // [T, K]
  const int16_t* q;      // [T, Kp] in blocks of 32 with a scale each; each four as the instruction set multiplies them
  const float* scale;    // [T, Kp / 32]
  const int32_t* sum;    // [T, Kp / 16]: sums of 16 quantised values
  const uint16_t* b;     // [T rounded up to 16, Kp] bfloat16
  int64_t t, k;
  TOKENMILL_INLINE int64_t padded_k() const { return (k + chunk - 1) / chunk * chunk; }
};

enum class Unary : int { Silu, GeluTanh, Gelu, Relu, Count };

/// Where a product with a gate leaves act(gate) * up, [T, N]; null: nowhere. Its two parts, which are seldom looked at, too.
struct Gated {
  Unary kind;
  float *gate, *up, *y;
  uint16_t* rounded;  // bfloat16, as Inputs::b
};

enum class CacheType : int { F32, BF16, I8, Count };

/// Keys and values of one layer; the layout of each type is told in attention.inl.
struct Cache {
  void* keys;
  void* values;
  CacheType type;
  int64_t block_size, heads, head_dim;
};

/// What attention needs to know of one sequence.
struct Sequence {
  int64_t start, count;       // its rows in this pass
  int64_t length;             // keys it sees, this pass included
  const int32_t* blocks;      // its block table
};

struct AttentionShape {
  int64_t heads;              // query heads
  float scale, softcap;       // softcap 0: none
  int64_t window;             // 0: none
};

struct TrainKernels;  // train.h

struct Kernels {
  const char* name;
  bool tiles;  // has matrix tiles (AMX): products of many rows take bfloat16 inputs

  void (*quantise)(const float* x, int64_t k, int16_t* q, float* scale, int32_t* sum);  // one row
  void (*to_bf16)(const float* x, int64_t k, uint16_t* b);                               // one row, padded
  /// y[T, ldy] for the panels [first, last) of a weight; y points at column 0. `tiles`: the inputs are in b.
  void (*linear)(const Weight& w, int64_t first, int64_t last, const Inputs& in, const float* bias, float* y,
                 int64_t ldy, bool tiles, float* scratch);
  /// Panels [first, last) of two weights of the same size, a multiple of 32, and a gate between them; with tiles only.
  void (*gated_linear)(const Weight& gate, const Weight& up, int64_t first, int64_t last, const Inputs& in,
                       const float* gate_bias, const float* up_bias, const Gated& out, float* scratch);
  void (*dequantise)(const Weight& w, int64_t row, float* out);  // one row, [K]

  /// Reads memory as a product does and adds it up: the roof that decoding stands under.
  int64_t (*stream)(const uint8_t* from, int64_t bytes);

  /// Rows [first, last) of x [rows, columns] into GGUF blocks at `to` (row 0's); importance [columns] or null. False
  /// where a number is not finite.
  bool (*encode)(BlockType type, const float* x, const float* importance, int64_t columns, int64_t first, int64_t last,
                 uint8_t* to);

  void (*rms_norm)(const float* x, const float* weight, float eps, int64_t size, float* y);
  void (*layer_norm)(const float* x, const float* weight, const float* bias, float eps, int64_t size, float* y);
  void (*rope)(const float* x, const float* cos, const float* sin, int64_t heads, int64_t dim, int64_t rotated, float* y);
  void (*unary)(Unary kind, const float* x, int64_t size, float* y);
  void (*gated)(Unary kind, const float* gate, const float* up, int64_t size, float* y);
  void (*add)(const float* a, const float* b, float scale_b, int64_t size, float* y);
  void (*scale)(const float* x, float factor, int64_t size, float* y);
  void (*softcap)(const float* x, float cap, int64_t size, float* y);

  void (*write_cache)(const Cache& cache, int64_t slot, const float* k, const float* v);
  /// Attention of one row and one key head's group of queries over keys [from, to); unnormalised, see attention.inl.
  void (*attend_row)(const Cache& cache, const AttentionShape& shape, const Sequence& s, const float* q, int64_t head,
                     int64_t next, int64_t from, int64_t to, float* out, float* max, float* sum, float* scratch);
  /// Attention of rows [first, last) of a sequence and one query head, normalised into y [T, H, D].
  void (*attend_tile)(const Cache& cache, const AttentionShape& shape, const Sequence& s, const float* q, int64_t head,
                      int64_t first, int64_t last, float* y, float* scratch);

  const TrainKernels* train;
};

/// Panels that the matrix tiles take at a time: their bfloat16 form is to stay in the second-level cache.
TOKENMILL_INLINE int64_t tile_panels(int64_t padded_k) {
  const int64_t fit = (int64_t{1} << 19) / (32 * padded_k) / 2 * 2;
  return fit < 2 ? 2 : fit > 16 ? 16 : fit;
}

/// Floats of scratch that a thread must bring for `linear` and the attention kernels, whose K is at most `max_k`. Not what
/// the largest needs: a smaller K has more panels, and these together may be larger.
TOKENMILL_INLINE int64_t scratch_floats(int64_t max_k, int64_t head_dim) {
  const int64_t kp = (max_k + chunk - 1) / chunk * chunk, most = 16 * 8 * kp, least = 2 * 8 * kp;
  const int64_t group = most < (int64_t{1} << 17) ? most : int64_t{1} << 17;  // tile_panels(k) * 16 * k / 2, at most
  const int64_t panels = (group > least ? group : least) + 1024;
  const int64_t tiles = 64 * (6 * (head_dim + 64) + 64) + 4096;
  return panels > tiles ? panels : tiles;
}

const Kernels* avx2_kernels();    // null where the machine or the compiler has no such thing
const Kernels* avx512_kernels();
const Kernels* amx_kernels();
const Kernels* neon_kernels();

/// The best table for this machine, or the one named (by TOKENMILL_ISA): throws std::invalid_argument if there is none.
const Kernels& kernels(const char* name = nullptr);

}  // namespace tokenmill
