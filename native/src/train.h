// What training needs besides products: passes that go forward and back, the loss of many words, the optimiser's step.
// Tensors are float32 or bfloat16; what is between reading and writing is float32.
#pragma once

#include "kernels.h"
#include "product.h"

namespace tokenmill {

/// What a tensor holds.
enum class Real : int { F32, BF16, Count };

/// Documents that lie one after the other, and how their tokens attend.
struct DocumentShape {
  Real type;
  int64_t heads, kv_heads, head_dim;
  float scale;
  int64_t window;  // 0: none
};

/// Of all tensors of one document: its first row. q, out, d_out, d_q [T, H, D]; k, v, d_k, d_v [T, K, D]. The forward
/// pass needs none of the gradients, the backward pass no `out`.
struct DocumentTensors {
  const void *q, *k, *v;
  void* out;
  const void* d_out;
  void *d_q, *d_k, *d_v;
};

/// A step of AdamW, its numbers already put together.
struct AdamW {
  float beta2, new1, new2;  // new: 1 - beta, which would lose its digits if it were taken here
  float eps, decay;         // decay: what a weight is multiplied with
  float gradient_scale, root_correction2, step_size;
};

/// One parameter's arrays. `low`: the lower halves of float32 weights whose rounded upper halves are `weights`; null: the
/// weights are float32.
struct AdamWTensors {
  void* weights;
  int16_t* low;
  void *m, *v;
  const void* gradient;
  Real m_type, v_type, gradient_type;
};

struct TrainKernels {
  void (*gated)(Unary kind, Real type, const void* gate, const void* up, int64_t size, void* y);
  void (*gated_backward)(Unary kind, Real type, const void* gate, const void* up, const void* d, int64_t size, void* d_gate,
                         void* d_up);
  double (*squares)(Real type, const void* x, int64_t size);  // their sum
  void (*rms_norm)(Real type, const void* x, const float* weight, float eps, int64_t rows, int64_t size, void* y);
  /// Rows of x [size]; d_weight [size] is added to.
  void (*rms_norm_backward)(Real type, const void* x, const void* d, const float* weight, float eps, int64_t rows,
                            int64_t size, void* d_x, float* d_weight);
  /// Tokens of heads [H, D] turned by cos, sin [T, rotated]; `back`: the other way, as a gradient is.
  void (*turn)(Real type, const void* x, const void* cos, const void* sin, bool back, int64_t tokens, int64_t heads,
               int64_t dim, int64_t rotated, void* y);
  /// One row of scores: its loss and log-sum-exp; with `gradient` the scores become the loss's derivative by them.
  void (*softmax_loss)(Real type, void* scores, int64_t size, int64_t label, float scale, float z_loss, bool gradient,
                       float* nll, float* lse, float* scratch);
  void (*adamw)(const AdamW& step, const AdamWTensors& p, int64_t first, int64_t last);
  /// The attention of one document and one key head; scratch as below.
  void (*attention)(const DocumentShape& shape, const DocumentTensors& t, int64_t length, int64_t kv_head, float* scratch);
  /// Its gradients. scratch: attention_scratch(...) floats.
  void (*attention_backward)(const DocumentShape& shape, const DocumentTensors& t, int64_t length, int64_t kv_head,
                             float* scratch);
  const ProductKernels* product;  // null: torch's are as good
};

constexpr int64_t query_block = 64;

/// Floats of scratch of attention_backward: five matrices of a value a key and feature, six of a value a key and query.
TOKENMILL_INLINE int64_t attention_scratch(int64_t length, int64_t head_dim) {
  const int64_t padded = (length + query_block - 1) / query_block * query_block;
  return padded * (5 * head_dim + 6 * query_block) + 6 * query_block * head_dim + 256;
}

}  // namespace tokenmill
