// AVX-512 and AMX: Sapphire Rapids and later. Products of many rows and attention over whole prompts go to matrix
// tiles; all else is AVX-512's.
#include <algorithm>

#include "kernels.h"
#include "train.h"
#if defined(__AMX_BF16__)
#define ISA_NAMESPACE amx
#include "simd.h"
// clang-format off
#include "matmul.inl"
#include "rows.inl"
#include "amx.inl"
#include "attention.inl"
#include "attention_amx.inl"
#include "train.inl"
#include "attention_backward.inl"
#include "attention_backward_amx.inl"
#include "product_amx.inl"
// clang-format on

namespace tokenmill {
namespace {

void linear(const Weight& w, int64_t first, int64_t last, const Inputs& in, const float* bias, float* y, int64_t ldy,
            bool tiles, float* scratch) {
  if (!tiles || w.kind == Kind::F32) return avx512_kernels()->linear(w, first, last, in, bias, y, ldy, false, scratch);
  amx::with_kind(w.kind, [&]<Kind KIND>() {
    if constexpr (KIND != Kind::F32) amx::linear_tiles<KIND>(w, first, last, in, bias, y, ldy, scratch);
  });
}

void attend_tile(const Cache& c, const AttentionShape& shape, const Sequence& s, const float* q, int64_t head,
                 int64_t first, int64_t last, float* y, float* scratch) {
  const auto of = c.head_dim % 32 || c.type == CacheType::F32 ? avx512_kernels()->attend_tile
                  : c.type == CacheType::BF16                ? amx::attend_tiles<CacheType::BF16>
                                                             : amx::attend_tiles<CacheType::I8>;
  of(c, shape, s, q, head, first, last, y, scratch);
}

void attention(const DocumentShape& shape, const DocumentTensors& t, int64_t length, int64_t kv_head, float* scratch) {
  const bool fits = shape.type == Real::BF16 && shape.head_dim % 32 == 0;
  const auto run = fits ? amx::training::attention_of<amx::training::TiledProducts, Real::BF16>
                        : avx512_kernels()->train->attention;
  run(shape, t, length, kv_head, scratch);
}

void attention_backward(const DocumentShape& shape, const DocumentTensors& t, int64_t length, int64_t kv_head,
                        float* scratch) {
  const bool fits = shape.type == Real::BF16 && shape.head_dim % 32 == 0;
  const auto run = fits ? amx::training::attention_backward_of<amx::training::TiledProducts, Real::BF16>
                        : avx512_kernels()->train->attention_backward;
  run(shape, t, length, kv_head, scratch);
}

}  // namespace

const Kernels* amx_kernels() {
  if (!avx512_kernels()) return nullptr;
  static const Kernels table = [] {
    Kernels k = *avx512_kernels();
    static TrainKernels train = *k.train;
    static constexpr ProductKernels product{amx::training::pack_panels, amx::training::multiply_block};
    train.attention = attention, train.attention_backward = attention_backward, train.product = &product;
    k.name = "amx", k.tiles = true, k.linear = linear, k.gated_linear = amx::gated_linear;
    k.attend_tile = attend_tile, k.train = &train;
    return k;
  }();
  return &table;
}
}  // namespace tokenmill
#else
namespace tokenmill {
const Kernels* amx_kernels() { return nullptr; }
}  // namespace tokenmill
#endif
