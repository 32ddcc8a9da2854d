// Causal attention over whole documents and its backward pass, 64 queries at a time. Going back, a block's scores are computed again (Dao
// et al. 2022). They lie transposed, a row for each key: the softmax then runs down the rows, sixteen queries in the lanes, and
// the weights are as the next products want them. Axes: J keys (padded to 64) · N the block's queries · D head size.
//
//   S = K Q'   P = softmax_J(S)   O' = V' P
//   dP = V dO'   dS = P (dP - sum_J P dP)   dV += P dO   dK += dS Q   dQ' = K' dS
#pragma once

namespace tokenmill::ISA_NAMESPACE::training {

/// How products are computed: in float32 here, in bfloat16 tiles in attention_backward_amx.inl. The right side of a
/// product [K, N] is kept with `pair` rows interleaved.
struct Floats {
  using Number = float;
  static constexpr int64_t pair = 1;
  static void row(float* to, f32x16 v) { store(to, v); }
  /// Two rows of a right side, 16 columns from `column` on.
  static void two_rows(float* to, int64_t columns, int64_t column, f32x16 even, f32x16 odd) {
    store(to + column, even);
    store(to + columns + column, odd);
  }
  /// Sixteen features from `feature` on of row r, in a right side [D, columns].
  static void across(float* to, int64_t columns, int64_t r, int64_t feature, f32x16 v) {
    for (int64_t l = 0; l < 16; l++) to[(feature + l) * columns + r] = v[l];
  }
  /// c[M, N] = (or +=) a[M, K] b[K, N]; M is a multiple of 4, N of 16.
  static void multiply(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, float* c, bool add) {
    const auto product = n % 32 ? multiply_by<1> : multiply_by<2>;
    product(m, n, k, a, lda, b, c, add);
  }
  template <int WIDTH>
  static void multiply_by(int64_t m, int64_t n, int64_t k, const float* a, int64_t lda, const float* b, float* c, bool add) {
    constexpr int rows = 4;
    for (int64_t i = 0; i < m; i += rows)
      for (int64_t j = 0; j < n; j += 16 * WIDTH) {
        f32x16 sums[rows][WIDTH];
        float* to = c + i * n + j;
        for (int r = 0; r < rows; r++)
          for (int h = 0; h < WIDTH; h++) sums[r][h] = add ? load<f32x16>(to + r * n + 16 * h) : splat(0.0f);
        for (int64_t l = 0; l < k; l++) {
          f32x16 right[WIDTH];
          for (int h = 0; h < WIDTH; h++) right[h] = load<f32x16>(b + l * n + j + 16 * h);
#pragma GCC unroll 4
          for (int r = 0; r < rows; r++)
#pragma GCC unroll 2
            for (int h = 0; h < WIDTH; h++) sums[r][h] = fma(splat(a[(i + r) * lda + l]), right[h], sums[r][h]);
        }
        for (int r = 0; r < rows; r++)
          for (int h = 0; h < WIDTH; h++) store(to + r * n + 16 * h, sums[r][h]);
      }
  }
  struct Session {};
};

/// Hands out aligned pieces of a scratch.
struct Pieces {
  uint8_t* next;
  explicit Pieces(float* scratch) : next(reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(scratch) + 63) & ~uintptr_t{63})) {}
  template <class T>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(next);
    next += (count * sizeof(T) + 63) / 64 * 64;
    return piece;
  }
};

/// Rows [0, count) of one head, padded with zeros to `padded`: as they are, as the right side of a product over rows
/// (paired rows), and transposed, as the right side of a product over features. Each may be left out.
template <class P, Real REAL>
void arrange(const void* from, int64_t stride, int64_t d, int64_t count, int64_t padded, typename P::Number* as_rows,
             typename P::Number* right, typename P::Number* right_transposed) {
  for (int64_t r = 0; r < padded; r += 2)
    for (int64_t i = 0; i < d; i += 16) {
      const f32x16 even = r < count ? get<REAL>(offset<REAL>(from, r * stride), i, 16) : splat(0.0f);
      const f32x16 odd = r + 1 < count ? get<REAL>(offset<REAL>(from, (r + 1) * stride), i, 16) : splat(0.0f);
      if (as_rows) P::row(as_rows + r * d + i, even), P::row(as_rows + (r + 1) * d + i, odd);
      if (right) P::two_rows(right + r * d, d, i * P::pair, even, odd);
      if (right_transposed) {
        P::across(right_transposed, padded, r, i, even);
        P::across(right_transposed, padded, r + 1, i, odd);
      }
    }
}

/// Scores of sixteen queries from column c on, scaled; -inf where a key is in a query's future or out of its window.
/// Returns each query's largest. `first`: the position of the first key; `begin`: of the first query.
inline f32x16 hide(const DocumentShape& shape, int64_t keys, int64_t first, int64_t begin, int64_t c, float* s) {
  const i32x16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  const i32x16 query = lane + static_cast<int32_t>(begin + c);
  const i32x16 oldest = shape.window ? query - static_cast<int32_t>(shape.window) : splat(int32_t{-1});
  f32x16 top = splat(-__builtin_inff());
  for (int64_t j = 0; j < keys; j++) {
    const int32_t key = static_cast<int32_t>(first + j);
    f32x16 v = load<f32x16>(s + j * query_block + c) * shape.scale;
    if (key > begin || shape.window) v = (key > query) | (key <= oldest) ? splat(-__builtin_inff()) : v;
    store(s + j * query_block + c, v);
    top = max(top, v);
  }
  return top;
}

/// From scores [J, N] to the weights as the right side of a product over keys.
template <class P>
void soften(const DocumentShape& shape, int64_t keys, int64_t first, int64_t begin, float* s, typename P::Number* right) {
  for (int64_t c = 0; c < query_block; c += 16) {
    const f32x16 top = hide(shape, keys, first, begin, c, s);
    f32x16 total = splat(0.0f);
    for (int64_t j = 0; j < keys; j++) {
      const f32x16 e = exp(load<f32x16>(s + j * query_block + c) - top);
      store(s + j * query_block + c, e);
      total += e;
    }
    const f32x16 inverse = 1.0f / total;
    for (int64_t j = 0; j < keys; j += 2) {
      const float* at = s + j * query_block + c;
      P::two_rows(right + j * query_block, query_block, c * P::pair, load<f32x16>(at) * inverse,
                  load<f32x16>(at + query_block) * inverse);
    }
  }
}

/// From scores and dP [J, N] to the weights P and dS: as rows, and dS as the right side of a product over keys.
template <class P>
void soften_and_slope(const DocumentShape& shape, int64_t keys, int64_t first, int64_t begin, float* s, float* dp,
                      typename P::Number* p_rows, typename P::Number* ds_rows, typename P::Number* ds_right) {
  for (int64_t c = 0; c < query_block; c += 16) {
    const f32x16 top = hide(shape, keys, first, begin, c, s);
    f32x16 total = splat(0.0f), inner = splat(0.0f);
    for (int64_t j = 0; j < keys; j++) {
      const f32x16 e = exp(load<f32x16>(s + j * query_block + c) - top);
      store(s + j * query_block + c, e);
      total += e;
      inner = fma(e, load<f32x16>(dp + j * query_block + c), inner);
    }
    const f32x16 inverse = 1.0f / total;
    inner *= inverse;
    for (int64_t j = 0; j < keys; j += 2) {
      f32x16 ds[2];
      for (int64_t h = 0; h < 2; h++) {
        const int64_t at = (j + h) * query_block + c;
        const f32x16 weight = load<f32x16>(s + at) * inverse;
        ds[h] = weight * (load<f32x16>(dp + at) - inner) * shape.scale;
        P::row(p_rows + at, weight);
        P::row(ds_rows + at, ds[h]);
      }
      P::two_rows(ds_right + j * query_block, query_block, c * P::pair, ds[0], ds[1]);
    }
  }
}

/// Columns of a matrix [D, 64] of floats as the block's rows of a tensor.
template <Real REAL>
inline void write_rows(const float* across, int64_t d, int64_t rows, void* to, int64_t stride) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t i = 0; i < d; i += 16) {
      f32x16 x;
      for (int64_t l = 0; l < 16; l++) x[l] = across[(i + l) * query_block + r];
      put<REAL>(offset<REAL>(to, r * stride), i, x, 16);
    }
}

template <class P, Real REAL>
void attention_of(const DocumentShape& shape, const DocumentTensors& t, int64_t length, int64_t kv_head, float* scratch) {
  using Number = typename P::Number;
  const int64_t d = shape.head_dim, groups = shape.heads / shape.kv_heads, block = query_block;
  const int64_t padded = (length + block - 1) / block * block;
  const int64_t q_stride = shape.heads * d, k_stride = shape.kv_heads * d;
  Pieces pieces(scratch);
  Number *k = pieces.take<Number>(padded * d), *v = pieces.take<Number>(padded * d), *v_across = pieces.take<Number>(padded * d);
  float *s = pieces.take<float>(padded * block), *out = pieces.take<float>(block * d);
  Number *weights = pieces.take<Number>(padded * block), *q_across = pieces.take<Number>(block * d);
  arrange<P, REAL>(offset<REAL>(t.k, kv_head * d), k_stride, d, length, padded, k, nullptr, nullptr);
  arrange<P, REAL>(offset<REAL>(t.v, kv_head * d), k_stride, d, length, padded, v, nullptr, nullptr);
  for (int64_t j = 0; j < padded; j++)
    for (int64_t i = 0; i < d; i++) v_across[i * padded + j] = v[j * d + i];
  [[maybe_unused]] const typename P::Session session;
  for (int64_t g = 0; g < groups; g++)
    for (int64_t begin = 0; begin < length; begin += block) {
      const int64_t rows = std::min(block, length - begin), head = kv_head * groups + g, end = begin + block;
      const int64_t first = shape.window ? std::max<int64_t>(0, begin - shape.window + 1) / block * block : 0;
      const int64_t keys = end - first, at = begin * q_stride + head * d;
      arrange<P, REAL>(offset<REAL>(t.q, at), q_stride, d, rows, block, nullptr, nullptr, q_across);
      P::multiply(keys, block, d, k + first * d, d, q_across, s, false);
      soften<P>(shape, keys, first, begin, s, weights);
      P::multiply(d, block, keys, v_across + first, padded, weights, out, false);
      write_rows<REAL>(out, d, rows, offset<REAL>(t.out, at), q_stride);
    }
}

inline void attention(const DocumentShape& shape, const DocumentTensors& t, int64_t length, int64_t kv_head,
                      float* scratch) {
  with_real(shape.type, [&]<Real REAL>() { attention_of<Floats, REAL>(shape, t, length, kv_head, scratch); });
}

template <class P, Real REAL>
void attention_backward_of(const DocumentShape& shape, const DocumentTensors& t, int64_t length, int64_t kv_head,
                           float* scratch) {
  using Number = typename P::Number;
  const int64_t d = shape.head_dim, groups = shape.heads / shape.kv_heads, block = query_block;
  const int64_t padded = (length + block - 1) / block * block;
  const int64_t q_stride = shape.heads * d, k_stride = shape.kv_heads * d;
  Pieces pieces(scratch);
  Number *k = pieces.take<Number>(padded * d), *v = pieces.take<Number>(padded * d), *k_across = pieces.take<Number>(padded * d);
  float *d_k = pieces.take<float>(padded * d), *d_v = pieces.take<float>(padded * d);
  float *s = pieces.take<float>(padded * block), *dp = pieces.take<float>(padded * block);
  Number *p_rows = pieces.take<Number>(padded * block), *ds_rows = pieces.take<Number>(padded * block);
  Number* ds_right = pieces.take<Number>(padded * block);
  Number *q_down = pieces.take<Number>(block * d), *q_across = pieces.take<Number>(block * d);
  Number *o_down = pieces.take<Number>(block * d), *o_across = pieces.take<Number>(block * d);
  float* d_q = pieces.take<float>(block * d);
  arrange<P, REAL>(offset<REAL>(t.k, kv_head * d), k_stride, d, length, padded, k, nullptr, nullptr);
  arrange<P, REAL>(offset<REAL>(t.v, kv_head * d), k_stride, d, length, padded, v, nullptr, nullptr);
  for (int64_t j = 0; j < padded; j++)
    for (int64_t i = 0; i < d; i++) k_across[i * padded + j] = k[j * d + i];
  std::fill(d_k, d_k + padded * d, 0.0f);
  std::fill(d_v, d_v + padded * d, 0.0f);
  [[maybe_unused]] const typename P::Session session;
  for (int64_t g = 0; g < groups; g++)
    for (int64_t begin = 0; begin < length; begin += block) {
      const int64_t rows = std::min(block, length - begin), head = kv_head * groups + g, end = begin + block;
      const int64_t first = shape.window ? std::max<int64_t>(0, begin - shape.window + 1) / block * block : 0;
      const int64_t keys = end - first, at = begin * q_stride + head * d;
      arrange<P, REAL>(offset<REAL>(t.q, at), q_stride, d, rows, block, nullptr, q_down, q_across);
      arrange<P, REAL>(offset<REAL>(t.d_out, at), q_stride, d, rows, block, nullptr, o_down, o_across);
      P::multiply(keys, block, d, k + first * d, d, q_across, s, false);
      P::multiply(keys, block, d, v + first * d, d, o_across, dp, false);
      soften_and_slope<P>(shape, keys, first, begin, s, dp, p_rows, ds_rows, ds_right);
      P::multiply(keys, d, block, p_rows, block, o_down, d_v + first * d, true);
      P::multiply(keys, d, block, ds_rows, block, q_down, d_k + first * d, true);
      P::multiply(d, block, keys, k_across + first, padded, ds_right, d_q, false);
      write_rows<REAL>(d_q, d, rows, offset<REAL>(t.d_q, at), q_stride);
    }
  for (int64_t j = 0; j < length; j++)
    for (int64_t i = 0; i < d; i += 16) {
      put<REAL>(offset<REAL>(t.d_k, j * k_stride + kv_head * d), i, load<f32x16>(d_k + j * d + i), 16);
      put<REAL>(offset<REAL>(t.d_v, j * k_stride + kv_head * d), i, load<f32x16>(d_v + j * d + i), 16);
    }
}

inline void attention_backward(const DocumentShape& shape, const DocumentTensors& t, int64_t length, int64_t kv_head,
                               float* scratch) {
  with_real(shape.type, [&]<Real REAL>() { attention_backward_of<Floats, REAL>(shape, t, length, kv_head, scratch); });
}

}  // namespace tokenmill::ISA_NAMESPACE::training
