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

}  // namespace

const Kernels* amx_kernels() {
  if (!avx512_kernels()) return nullptr;
  static const Kernels table = [] {
    Kernels k = *avx512_kernels();
    k.name = "amx", k.tiles = true, k.linear = linear;
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
