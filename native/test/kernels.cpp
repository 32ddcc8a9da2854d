// Products and attention of one instruction set against plain sums, without Python: for machines that are emulated.
//   kernels NAME      prints what it found; the exit status is the number of failures
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <utility>
#include <vector>

#include "kernels.h"
#include "train.h"

using namespace tokenmill;

namespace {

uint32_t state = 1;
uint32_t draw() { return state = state * 1664525u + 1013904223u; }
float number() { return static_cast<float>(draw() >> 8) / (1 << 23) - 1.0f; }
int failures = 0;

void check(const char* what, int id, double error, double limit) {
  const bool bad = !(error <= limit);
  failures += bad;
  std::printf("%-10s %2d  %.2e  %s\n", what, id, error, bad ? "FAILED" : "ok");
}

/// A weight of random codes; every two bytes of scales are a half-precision number from 2^-7 to 2^-3.
void product(const Kernels& k, Kind kind) {
  constexpr int64_t n = 37, inputs = 512, rows = 11;
  Weight w{kind, n, inputs, 0, nullptr};
  std::vector<uint8_t> memory(w.panels() * w.panel_bytes() + 64);
  uint8_t* data = reinterpret_cast<uint8_t*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) & ~uintptr_t{63});
  w.data = data;
  for (int64_t p = 0; p < w.panels(); p++)
    for (int64_t i = 0; i < w.panel_bytes(); i += 2) {
      const bool scale = i >= w.code_bytes();
      const uint16_t v = static_cast<uint16_t>(scale ? 0x2000 | (draw() >> 8 & 0xfff) : draw() >> 8);
      std::memcpy(data + p * w.panel_bytes() + i, &v, 2);
    }
  std::vector<float> x(rows * inputs), y(rows * n), scale(rows * inputs / 32), weights(n * inputs);
  std::vector<int16_t> q(rows * inputs);
  std::vector<int32_t> sum(rows * inputs / 16);
  for (float& v : x) v = number();
  for (int64_t t = 0; t < rows; t++)
    k.quantise(&x[t * inputs], inputs, &q[t * inputs], &scale[t * inputs / 32], &sum[t * inputs / 16]);
  k.linear(w, 0, w.panels(), {x.data(), q.data(), scale.data(), sum.data(), nullptr, rows, inputs}, nullptr, y.data(), n,
           false, nullptr);
  double off = 0, all = 0;
  for (int64_t i = 0; i < n; i++) {
    k.dequantise(w, i, &weights[i * inputs]);
    for (int64_t t = 0; t < rows; t++) {
      double exact = 0, size = 0;
      for (int64_t j = 0; j < inputs; j++) {
        const double part = static_cast<double>(x[t * inputs + j]) * weights[i * inputs + j];
        exact += part, size += part * part;
      }
      off += (exact - y[t * n + i]) * (exact - y[t * n + i]), all += size;
    }
  }
  check("product", static_cast<int>(kind), std::sqrt(off / all), 3e-4);
}

void attention(const Kernels& k, CacheType type, double limit) {
  constexpr int64_t d = 64, heads = 2, length = 45, block = 32, groups = 2;
  std::vector<uint8_t> keys(2 * block * heads * (d + 1) * 4, 0xff), values(keys);  // what nobody wrote is NaN
  const Cache cache{keys.data(), values.data(), type, block, heads, d};
  const int32_t table[] = {1, 0};
  std::vector<float> key(length * heads * d), value(key.size()), q(heads * groups * d), y(q.size());
  for (auto* v : {&key, &value, &q})
    for (float& f : *v) f = number();
  for (int64_t p = 0; p < length; p++)
    k.write_cache(cache, table[p / block] * block + p % block, &key[p * heads * d], &value[p * heads * d]);
  const AttentionShape shape{heads * groups, 0.5f, 0.0f, 0};
  std::vector<float> scratch(scratch_floats(64, d));
  double worst = 0;
  for (int64_t h = 0; h < heads; h++) {
    float top[groups], sum[groups];
    float* out = &y[h * groups * d];
    k.attend_row(cache, shape, {0, 1, length, table}, &q[h * groups * d], h, -1, 0, length, out, top, sum, scratch.data());
    for (int64_t g = 0; g < groups; g++) {
      std::vector<double> p(length), exact(d);
      double total = 0;
      for (int64_t i = 0; i < length; i++) {
        double score = 0;
        for (int64_t f = 0; f < d; f++) score += static_cast<double>(q[(h * groups + g) * d + f]) * key[(i * heads + h) * d + f];
        total += p[i] = std::exp(0.5 * score);
      }
      for (int64_t f = 0; f < d; f++) {
        for (int64_t i = 0; i < length; i++) exact[f] += p[i] / total * value[(i * heads + h) * d + f];
        worst = std::fmax(worst, std::isnan(out[g * d + f]) ? INFINITY : std::fabs(exact[f] - out[g * d + f] / sum[g]));
      }
    }
  }
  check("attention", static_cast<int>(type), worst, limit);
}

/// Attention over a document as training has it: the value against plain sums, each gradient against differences of it.
void document(const Kernels& k) {
  constexpr int64_t d = 16, heads = 2, length = 70;
  const DocumentShape shape{Real::F32, heads, 1, d, 0.3f, 40};
  std::vector<float> q(length * heads * d), keys(length * d), values(length * d), by(q.size()), out(q.size());
  for (auto* v : {&q, &keys, &values, &by})
    for (float& f : *v) f = number();
  std::vector<float> d_q(q.size()), d_k(keys.size()), d_v(values.size()), scratch(attention_scratch(length, d));
  const DocumentTensors t{q.data(), keys.data(), values.data(), out.data(), by.data(), d_q.data(), d_k.data(), d_v.data()};
  const auto loss = [&] {  // in double, by plain sums
    double sum = 0;
    for (int64_t h = 0; h < heads; h++)
      for (int64_t i = 0; i < length; i++) {
        std::vector<double> p(length);
        double total = 0;
        const int64_t first = std::max<int64_t>(0, i - 39);
        for (int64_t j = first; j <= i; j++) {
          double score = 0;
          for (int64_t f = 0; f < d; f++) score += double{q[(i * heads + h) * d + f]} * keys[j * d + f];
          total += p[j] = std::exp(0.3 * score);
        }
        for (int64_t j = first; j <= i; j++)
          for (int64_t f = 0; f < d; f++) sum += p[j] / total * values[j * d + f] * by[(i * heads + h) * d + f];
      }
    return sum;
  };
  k.train->attention(shape, t, length, 0, scratch.data());
  k.train->attention_backward(shape, t, length, 0, scratch.data());
  double found = 0;
  for (size_t i = 0; i < out.size(); i++) found += double{out[i]} * by[i];
  check("document", 0, std::fabs(found - loss()), 1e-3);
  int id = 1;
  for (auto [tensor, gradient] : {std::pair{&q, &d_q}, {&keys, &d_k}, {&values, &d_v}}) {
    const size_t at = draw() % tensor->size();
    const float kept = (*tensor)[at];
    (*tensor)[at] = kept + 0.01f;
    const double up = loss();
    (*tensor)[at] = kept - 0.01f;
    const double slope = (up - loss()) / 0.02;
    (*tensor)[at] = kept;
    check("gradient", id++, std::fabs(slope - (*gradient)[at]), 2e-3);
  }
}

}  // namespace

int main(int count, char** names) {
  const Kernels& k = kernels(count > 1 ? names[1] : nullptr);
  std::printf("%s\n", k.name);
  for (int kind = static_cast<int>(Kind::Q4_0); kind < static_cast<int>(Kind::Count); kind++) product(k, static_cast<Kind>(kind));
  attention(k, CacheType::F32, 1e-5);
  attention(k, CacheType::BF16, 0.02);
  attention(k, CacheType::I8, 0.03);
  document(k);
  return failures;
}
