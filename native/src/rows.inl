// What lies between the products, one row at a time.
#pragma once

namespace tokenmill::ISA_NAMESPACE {

/// Calls f(i, lanes) for every 16 numbers of `size`; the last call may have fewer lanes.
template <class F>
inline void each16(int64_t size, F&& f) {
  int64_t i = 0;
  for (; i + 16 <= size; i += 16) f(i, int64_t{16});
  if (i < size) f(i, size - i);
}
inline f32x16 load_some(const float* p, int64_t lanes) {
  if (lanes == 16) return load<f32x16>(p);
  float v[16] = {};
  std::memcpy(v, p, lanes * sizeof(float));
  return load<f32x16>(v);
}
inline void store_some(float* p, f32x16 v, int64_t lanes) { std::memcpy(p, &v, lanes * sizeof(float)); }

inline void rms_norm(const float* x, const float* weight, float eps, int64_t size, float* y) {
  f32x16 squares = splat(0.0f);
  each16(size, [&](int64_t i, int64_t n) {
    const f32x16 v = load_some(x + i, n);
    squares = fma(v, v, squares);
  });
  const float factor = 1.0f / std::sqrt(sum(squares) / static_cast<float>(size) + eps);
  each16(size, [&](int64_t i, int64_t n) {
    store_some(y + i, load_some(x + i, n) * factor * load_some(weight + i, n), n);
  });
}

inline void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t size, float* y) {
  f32x16 total = splat(0.0f);
  each16(size, [&](int64_t i, int64_t n) { total += load_some(x + i, n); });
  const float mean = sum(total) / static_cast<float>(size);
  f32x16 squares = splat(0.0f);
  each16(size, [&](int64_t i, int64_t n) {
    float v[16] = {};
    for (int64_t j = 0; j < n; j++) v[j] = x[i + j] - mean;
    const f32x16 centred = load<f32x16>(v);
    squares = fma(centred, centred, squares);
  });
  const float factor = 1.0f / std::sqrt(sum(squares) / static_cast<float>(size) + eps);
  each16(size, [&](int64_t i, int64_t n) {
    f32x16 v = (load_some(x + i, n) - mean) * factor * load_some(weight + i, n);
    if (bias) v += load_some(bias + i, n);
    store_some(y + i, v, n);
  });
}

/// Half-split rotation of each head's first `rotated` features; the rest is copied.
inline void rope(const float* x, const float* cos, const float* sin, int64_t heads, int64_t dim, int64_t rotated, float* y) {
  const int64_t half = rotated / 2;
  for (int64_t h = 0; h < heads; h++, x += dim, y += dim) {
    each16(half, [&](int64_t i, int64_t n) {
      const f32x16 a = load_some(x + i, n), b = load_some(x + half + i, n);
      const f32x16 first = a * load_some(cos + i, n) - b * load_some(sin + i, n);
      const f32x16 second = b * load_some(cos + half + i, n) + a * load_some(sin + half + i, n);
      store_some(y + i, first, n);
      store_some(y + half + i, second, n);
    });
    if (rotated < dim) std::memmove(y + rotated, x + rotated, (dim - rotated) * sizeof(float));
  }
}

inline f32x16 tanh(f32x16 x) { return 1.0f - 2.0f / (exp(2.0f * x) + 1.0f); }

inline f32x16 activate(Unary kind, f32x16 x) {
  switch (kind) {
    case Unary::Silu: return x / (1.0f + exp(-x));
    case Unary::GeluTanh: return 0.5f * x * (1.0f + tanh(0.7978845608f * fma(x * x * x, splat(0.044715f), x)));
    case Unary::Gelu: {
      f32x16 v;
      for (int i = 0; i < 16; i++) v[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.70710678f));
      return v;
    }
    default: return x > 0 ? x : (x != x ? x : splat(0.0f));
  }
}

inline void unary(Unary kind, const float* x, int64_t size, float* y) {
  each16(size, [&](int64_t i, int64_t n) { store_some(y + i, activate(kind, load_some(x + i, n)), n); });
}
inline void gated(Unary kind, const float* gate, const float* up, int64_t size, float* y) {
  each16(size, [&](int64_t i, int64_t n) {
    store_some(y + i, activate(kind, load_some(gate + i, n)) * load_some(up + i, n), n);
  });
}
inline void add(const float* a, const float* b, float scale_b, int64_t size, float* y) {
  each16(size, [&](int64_t i, int64_t n) {
    store_some(y + i, fma(load_some(b + i, n), splat(scale_b), load_some(a + i, n)), n);
  });
}
inline void scale(const float* x, float factor, int64_t size, float* y) {
  each16(size, [&](int64_t i, int64_t n) { store_some(y + i, load_some(x + i, n) * factor, n); });
}
inline void softcap(const float* x, float cap, int64_t size, float* y) {
  each16(size, [&](int64_t i, int64_t n) { store_some(y + i, cap * tanh(load_some(x + i, n) / cap), n); });
}

}  // namespace tokenmill::ISA_NAMESPACE
