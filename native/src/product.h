// Products of two bfloat16 matrices, for training: forward, by the inputs and by the weights, each side stored either way.
#pragma once

#include <cstdint>

namespace tokenmill {

/// One side of a product: value k of row r is data[r * stride + k], or, stored `across`, data[k * stride + r].
struct Side {
  const uint16_t* data;
  int64_t stride;
  bool across;
};

/// A part of the results: panels of 32 rows and 32 columns (see product_amx.inl), [rows, columns] of y.
struct Block {
  const uint16_t *left, *right;
  int64_t steps;        // of 32 values of k
  int64_t rows, columns;
  float* sums;          // [panels of rows, ld_sums] of 32 x 32 where k comes in parts, else null
  int64_t ld_sums;
  bool first, last;     // part of k
  uint16_t* y;
  int64_t ldy;
  bool past_caches;  // y is larger than they are
};

struct ProductKernels {
  /// Values [k, k + ks) of `rows` rows from `row` on into panels of 32 rows, each of ks / 32, rounded up, times 1,024.
  void (*pack)(const Side& side, bool right, int64_t row, int64_t rows, int64_t k, int64_t ks, uint16_t* to);
  void (*multiply)(const Block& block);
};

}  // namespace tokenmill
