// Everything that is compiled once for each instruction set. The including file sets ISA_NAMESPACE and ISA_NAME.
#include <algorithm>

#include "kernels.h"
#include "simd.h"
#include "train.h"
// clang-format off
#include "matmul.inl"
#include "rows.inl"
#include "attention.inl"
#include "encode_fit.inl"
#include "encode.inl"
#include "train.inl"
#include "attention_backward.inl"
// clang-format on

namespace tokenmill::ISA_NAMESPACE {

inline void linear(const Weight& w, int64_t first, int64_t last, const Inputs& in, const float* bias, float* y, int64_t ldy,
                   bool, float*) {
  with_kind(w.kind, [&]<Kind KIND>() { linear_of<KIND>(w, first, last, in, bias, y, ldy); });
}

namespace training {
constexpr TrainKernels table = {
    gated, gated_backward, squares, rms_norm, rms_norm_backward, turn, softmax_loss, adamw, attention, attention_backward, nullptr,
};
}

constexpr Kernels table = {
    ISA_NAME,   false,
    quantise, row_to_bf16, linear, nullptr, dequantise, stream, blocks::encode_rows, rms_norm, layer_norm, rope, unary,
    gated,    add,         scale,  softcap,    write_cache, attend_row, attend_tile, &training::table,
};

}  // namespace tokenmill::ISA_NAMESPACE
