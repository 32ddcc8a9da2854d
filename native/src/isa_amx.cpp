// AVX-512 and AMX: Sapphire Rapids and later. Products of many rows and attention over whole prompts go to matrix
// tiles; all else is AVX-512's.
#include <algorithm>

#include "kernels.h"
#if defined(__AMX_BF16__)
#define ISA_NAMESPACE amx
#include "simd.h"
// clang-format off
#include "matmul.inl"
#include "amx.inl"
#include "rows.inl"
#include "attention.inl"
#include "attention_amx.inl"
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
  const bool fits = c.type == CacheType::BF16 && c.head_dim % 32 == 0;
  (fits ? amx::attend_tiles : avx512_kernels()->attend_tile)(c, shape, s, q, head, first, last, y, scratch);
}

}  // namespace

const Kernels* amx_kernels() {
  if (!avx512_kernels()) return nullptr;
  static const Kernels table = [] {
    Kernels k = *avx512_kernels();
    k.name = "amx", k.tiles = true, k.linear = linear, k.attend_tile = attend_tile;
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
