// Passes over rows for training; see train.h.
#pragma once

namespace tokenmill::ISA_NAMESPACE::training {

/// Up to sixteen numbers from index i on, as floats.
template <Real REAL>
inline f32x16 get(const void* from, int64_t i, int64_t lanes) {
  if constexpr (REAL == Real::F32) return load_some(static_cast<const float*>(from) + i, lanes);
  const uint16_t* p = static_cast<const uint16_t*>(from) + i;
  if (lanes == 16) return from_bf16(p);
  uint16_t some[16] = {};
  std::memcpy(some, p, lanes * sizeof(uint16_t));
  return from_bf16(some);
}

template <Real REAL>
inline void put(void* to, int64_t i, f32x16 v, int64_t lanes) {
  if constexpr (REAL == Real::F32) return store_some(static_cast<float*>(to) + i, v, lanes);
  uint16_t* p = static_cast<uint16_t*>(to) + i;
  if (lanes == 16) return to_bf16(p, v);
  uint16_t some[16];
  to_bf16(some, v);
  std::memcpy(p, some, lanes * sizeof(uint16_t));
}

template <Real REAL>
inline void* offset(void* p, int64_t i) {
  return static_cast<uint8_t*>(p) + i * (REAL == Real::F32 ? 4 : 2);
}
template <Real REAL>
inline const void* offset(const void* p, int64_t i) {
  return static_cast<const uint8_t*>(p) + i * (REAL == Real::F32 ? 4 : 2);
}

template <class F>
inline auto with_real(Real type, F&& f) {
  if (type == Real::BF16) return f.template operator()<Real::BF16>();
  return f.template operator()<Real::F32>();
}

/// The function and its derivative.
inline f32x16 activate(Unary kind, f32x16 x, f32x16& slope) {
  const f32x16 one = splat(1.0f);
  switch (kind) {
    case Unary::Silu: {
      const f32x16 s = 1.0f / (1.0f + exp(-x));
      slope = s * fma(x, one - s, one);
      return x * s;
    }
    case Unary::GeluTanh: {
      const f32x16 t = tanh(0.7978845608f * fma(x * x * x, splat(0.044715f), x));
      slope = 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.7978845608f * fma(x * x, splat(0.134145f), one);
      return 0.5f * x * (1.0f + t);
    }
    case Unary::Gelu: {
      f32x16 share;
      for (int i = 0; i < 16; i++) share[i] = 0.5f * (1.0f + std::erf(x[i] * 0.70710678f));
      slope = fma(x * 0.3989422804f, exp(-0.5f * x * x), share);
      return x * share;
    }
    default:
      slope = x > 0 ? one : splat(0.0f);
      return x > 0 ? x : (x != x ? x : splat(0.0f));
  }
}

inline void gated(Unary kind, Real type, const void* gate, const void* up, int64_t size, void* y) {
  with_real(type, [&]<Real REAL>() {
    each16(size, [&](int64_t i, int64_t n) {
      put<REAL>(y, i, ISA_NAMESPACE::activate(kind, get<REAL>(gate, i, n)) * get<REAL>(up, i, n), n);
    });
  });
}

inline void gated_backward(Unary kind, Real type, const void* gate, const void* up, const void* d, int64_t size,
                           void* d_gate, void* d_up) {
  with_real(type, [&]<Real REAL>() {
    each16(size, [&](int64_t i, int64_t n) {
      f32x16 slope;
      const f32x16 active = activate(kind, get<REAL>(gate, i, n), slope), by = get<REAL>(d, i, n);
      put<REAL>(d_gate, i, by * get<REAL>(up, i, n) * slope, n);
      put<REAL>(d_up, i, by * active, n);
    });
  });
}

inline double squares(Real type, const void* x, int64_t size) {
  return with_real(type, [&]<Real REAL>() {
    f32x16 found = splat(0.0f);
    each16(size, [&](int64_t i, int64_t n) {
      const f32x16 v = get<REAL>(x, i, n);
      found = fma(v, v, found);
    });
    return static_cast<double>(sum(found));
  });
}

inline void rms_norm(Real type, const void* x, const float* weight, float eps, int64_t rows, int64_t size, void* y) {
  with_real(type, [&]<Real REAL>() {
    for (int64_t r = 0; r < rows; r++) {
      const void* row = offset<REAL>(x, r * size);
      f32x16 squares = splat(0.0f);
      each16(size, [&](int64_t i, int64_t n) {
        const f32x16 v = get<REAL>(row, i, n);
        squares = fma(v, v, squares);
      });
      const float inverse = 1.0f / std::sqrt(sum(squares) / static_cast<float>(size) + eps);
      each16(size, [&](int64_t i, int64_t n) {
        put<REAL>(offset<REAL>(y, r * size), i, get<REAL>(row, i, n) * inverse * load_some(weight + i, n), n);
      });
    }
  });
}

inline void rms_norm_backward(Real type, const void* x, const void* d, const float* weight, float eps, int64_t rows,
                              int64_t size, void* d_x, float* d_weight) {
  with_real(type, [&]<Real REAL>() {
    for (int64_t r = 0; r < rows; r++) {
      const void *row = offset<REAL>(x, r * size), *by = offset<REAL>(d, r * size);
      f32x16 squares = splat(0.0f), inner = splat(0.0f);
      each16(size, [&](int64_t i, int64_t n) {
        const f32x16 v = get<REAL>(row, i, n);
        squares = fma(v, v, squares);
        inner = fma(v * get<REAL>(by, i, n), load_some(weight + i, n), inner);
      });
      const float count = static_cast<float>(size), inverse = 1.0f / std::sqrt(sum(squares) / count + eps);
      const float along = sum(inner) / count * inverse * inverse;
      each16(size, [&](int64_t i, int64_t n) {
        const f32x16 v = get<REAL>(row, i, n), g = get<REAL>(by, i, n);
        put<REAL>(offset<REAL>(d_x, r * size), i, (g * load_some(weight + i, n) - v * along) * inverse, n);
        store_some(d_weight + i, fma(g, v * inverse, load_some(d_weight + i, n)), n);
      });
    }
  });
}

inline void turn(Real type, const void* x, const void* cos, const void* sin, bool back, int64_t tokens, int64_t heads,
                 int64_t dim, int64_t rotated, void* y) {
  const int64_t half = rotated / 2;
  const float way = back ? -1.0f : 1.0f;
  with_real(type, [&]<Real REAL>() {
    for (int64_t t = 0; t < tokens; t++)
      for (int64_t h = 0; h < heads; h++) {
        const void* from = offset<REAL>(x, (t * heads + h) * dim);
        void* to = offset<REAL>(y, (t * heads + h) * dim);
        const void *c = offset<REAL>(cos, t * rotated), *s = offset<REAL>(sin, t * rotated);
        each16(half, [&](int64_t i, int64_t n) {
          const f32x16 a = get<REAL>(from, i, n), b = get<REAL>(from, half + i, n);
          // Going back, each sine belongs to the feature it was multiplied with
          const f32x16 s1 = get<REAL>(s, back ? half + i : i, n) * way, s2 = get<REAL>(s, back ? i : half + i, n) * way;
          put<REAL>(to, i, a * get<REAL>(c, i, n) - b * s1, n);
          put<REAL>(to, half + i, b * get<REAL>(c, half + i, n) + a * s2, n);
        });
        each16(dim - rotated, [&](int64_t i, int64_t n) {
          put<REAL>(to, rotated + i, get<REAL>(from, rotated + i, n), n);
        });
      }
  });
}

inline void softmax_loss(Real type, void* scores, int64_t size, int64_t label, float scale, float z_loss, bool gradient,
                         float* nll, float* lse, float* scratch) {
  with_real(type, [&]<Real REAL>() {
    f32x16 largest = splat(-__builtin_inff()), total = splat(0.0f);
    each16(size, [&](int64_t i, int64_t n) {
      f32x16 v = get<REAL>(scores, i, n) * scale;
      store_some(scratch + i, v, n);
      for (int64_t l = n; l < 16; l++) v[l] = v[0];
      largest = max(largest, v);
    });
    const float top = max(largest), picked = scratch[label];
    each16(size, [&](int64_t i, int64_t n) {
      f32x16 e = exp(load_some(scratch + i, n) - top);
      for (int64_t l = n; l < 16; l++) e[l] = 0.0f;
      store_some(scratch + i, e, n);
      total += e;
    });
    const float sums = sum(total);
    *lse = std::log(sums) + top;
    *nll = *lse - picked;
    if (!gradient) return;
    const float weight = (1.0f + 2.0f * z_loss * *lse) / sums * scale;
    each16(size, [&](int64_t i, int64_t n) { put<REAL>(scores, i, load_some(scratch + i, n) * weight, n); });
    put<REAL>(scores, label, splat(scratch[label] * weight - scale), 1);
  });
}

/// Exact weights [i, i + lanes): rounded upper halves plus lower ones.
inline f32x16 joined(const AdamWTensors& p, int64_t i, int64_t lanes) {
  if (!p.low) return load_some(static_cast<const float*>(p.weights) + i, lanes);
  uint16_t high[16] = {};
  int16_t low[16] = {};
  std::memcpy(high, static_cast<const uint16_t*>(p.weights) + i, lanes * 2);
  std::memcpy(low, p.low + i, lanes * 2);
  typedef int16_t i16x16 __attribute__((vector_size(32)));
  const u32x16 bits = __builtin_convertvector(load<u16x16>(high), u32x16) << 16;
  return as_float(bits + (u32x16) __builtin_convertvector(load<i16x16>(low), i32x16));
}

inline void split(const AdamWTensors& p, int64_t i, f32x16 w, int64_t lanes) {
  if (!p.low) return store_some(static_cast<float*>(p.weights) + i, w, lanes);
  typedef int16_t i16x16 __attribute__((vector_size(32)));
  const i32x16 bits = (i32x16)w;
  const i16x16 low = __builtin_convertvector(bits, i16x16);
  const u16x16 high = __builtin_convertvector((u32x16)((bits - __builtin_convertvector(low, i32x16)) >> 16), u16x16);
  std::memcpy(p.low + i, &low, lanes * 2);
  std::memcpy(static_cast<uint16_t*>(p.weights) + i, &high, lanes * 2);
}

inline f32x16 root(f32x16 v) {
#if defined(__AVX512F__)
  return _mm512_sqrt_ps(v);
#else
  for (int i = 0; i < 16; i++) v[i] = std::sqrt(v[i]);
  return v;
#endif
}

inline void adamw(const AdamW& step, const AdamWTensors& p, int64_t first, int64_t last) {
  with_real(p.gradient_type, [&]<Real G>() {
    with_real(p.m_type, [&]<Real M>() {
      with_real(p.v_type, [&]<Real V>() {
        each16(last - first, [&](int64_t at, int64_t n) {
          const int64_t i = first + at;
          const f32x16 g = get<G>(p.gradient, i, n) * step.gradient_scale;
          const f32x16 m0 = get<M>(p.m, i, n), m = m0 + (g - m0) * step.new1;
          const f32x16 v = get<V>(p.v, i, n) * step.beta2 + g * g * step.new2;
          const f32x16 w = joined(p, i, n) * step.decay;
          split(p, i, w - step.step_size * m / (root(v) / step.root_correction2 + step.eps), n);
          put<M>(p.m, i, m, n);
          put<V>(p.v, i, v, n);
        });
      });
    });
  });
}

}  // namespace tokenmill::ISA_NAMESPACE::training
