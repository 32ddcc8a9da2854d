// Training's passes over whole tensors, shared out among the threads. Addresses and sizes come from ops/native_train.py,
// which checks them. Whatever the number of threads, the pieces and so the results are the same.
#include "train.h"

#include <nanobind/nanobind.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <numeric>
#include <stdexcept>

#include "pool.h"
#include "room.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tokenmill {
namespace {

using Address = uintptr_t;
template <class T = void>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}
int64_t bytes(Real type) { return type == Real::F32 ? 4 : 2; }

constexpr int64_t piece_values = 1 << 15;

/// Calls f(piece, first, last) for pieces of [0, count) that hold `width` values each.
template <class F>
void pieces(Pool& pool, int64_t count, int64_t width, F f) {
  const int64_t step = std::max<int64_t>(1, piece_values / width);
  parallel(pool, (count + step - 1) / step, [&](int64_t i, int) { f(i, i * step, std::min(count, (i + 1) * step)); });
}

void gated(Pool& pool, const Kernels& k, int kind, int type, Address gate, Address up, int64_t size, Address y) {
  nb::gil_scoped_release free;
  const int64_t width = bytes(Real(type));
  pieces(pool, size, 1, [&](int64_t, int64_t first, int64_t last) {
    const int64_t from = first * width;
    k.train->gated(Unary(kind), Real(type), at(gate + from), at(up + from), last - first, at(y + from));
  });
}

void gated_backward(Pool& pool, const Kernels& k, int kind, int type, Address gate, Address up, Address d, int64_t size,
                    Address d_gate, Address d_up) {
  nb::gil_scoped_release free;
  const int64_t width = bytes(Real(type));
  pieces(pool, size, 1, [&](int64_t, int64_t first, int64_t last) {
    const int64_t from = first * width;
    k.train->gated_backward(Unary(kind), Real(type), at(gate + from), at(up + from), at(d + from), last - first,
                            at(d_gate + from), at(d_up + from));
  });
}

double squares(Pool& pool, const Kernels& k, int type, Address x, int64_t size) {
  nb::gil_scoped_release free;
  std::vector<double> sums((size + piece_values - 1) / piece_values);
  pieces(pool, size, 1, [&](int64_t i, int64_t first, int64_t last) {
    sums[i] = k.train->squares(Real(type), at(x + first * bytes(Real(type))), last - first);
  });
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

void rms_norm(Pool& pool, const Kernels& k, int type, Address x, Address weight, float eps, int64_t rows, int64_t size,
              Address y) {
  nb::gil_scoped_release free;
  const int64_t width = bytes(Real(type)) * size;
  pieces(pool, rows, size, [&](int64_t, int64_t first, int64_t last) {
    k.train->rms_norm(Real(type), at(x + first * width), at<float>(weight), eps, last - first, size, at(y + first * width));
  });
}

/// Rows of a piece: how many sums of weights' gradients the caller brings is count / this, rounded up.
int64_t norm_rows(int64_t size) { return std::max<int64_t>(1, piece_values / size); }

void rms_norm_backward(Pool& pool, const Kernels& k, int type, Address x, Address d, Address weight, float eps,
                       int64_t rows, int64_t size, Address d_x, Address d_weights) {
  nb::gil_scoped_release free;
  const int64_t width = bytes(Real(type)) * size;
  pieces(pool, rows, size, [&](int64_t i, int64_t first, int64_t last) {
    float* sums = at<float>(d_weights) + i * size;
    std::fill(sums, sums + size, 0.0f);
    k.train->rms_norm_backward(Real(type), at(x + first * width), at(d + first * width), at<float>(weight), eps,
                               last - first, size, at(d_x + first * width), sums);
  });
}

void turn(Pool& pool, const Kernels& k, int type, Address x, Address cos, Address sin, bool back, int64_t tokens,
          int64_t heads, int64_t dim, int64_t rotated, Address y) {
  nb::gil_scoped_release free;
  const int64_t width = bytes(Real(type));
  pieces(pool, tokens, heads * dim, [&](int64_t, int64_t first, int64_t last) {
    const int64_t from = first * heads * dim * width, angles = first * rotated * width;
    k.train->turn(Real(type), at(x + from), at(cos + angles), at(sin + angles), back, last - first, heads, dim, rotated,
                  at(y + from));
  });
}

void softmax_loss(Pool& pool, const Kernels& k, int type, Address scores, int64_t rows, int64_t size, Address labels,
                  float scale, float z_loss, bool gradient, Address nll, Address lse) {
  for (int64_t r = 0; r < rows; r++)
    if (at<int64_t>(labels)[r] < 0 || at<int64_t>(labels)[r] >= size)
      throw std::out_of_range("a label is outside the vocabulary");  // IndexError, as torch's
  nb::gil_scoped_release free;
  std::vector<std::vector<float>> scratch(pool.threads(), std::vector<float>(size));
  parallel(pool, rows, [&](int64_t r, int thread) {
    k.train->softmax_loss(Real(type), at(scores + r * size * bytes(Real(type))), size, at<int64_t>(labels)[r], scale, z_loss,
                          gradient, at<float>(nll) + r, at<float>(lse) + r, scratch[thread].data());
  });
}

void adamw(Pool& pool, const Kernels& k, const std::vector<float>& numbers, const std::vector<Address>& arrays,
           const std::vector<int>& types, int64_t size) {
  const AdamW step{numbers.at(0), numbers.at(1), numbers.at(2), numbers.at(3),
                   numbers.at(4), numbers.at(5), numbers.at(6), numbers.at(7)};
  const AdamWTensors tensors{at(arrays.at(0)), at<int16_t>(arrays.at(1)), at(arrays.at(2)),   at(arrays.at(3)),
                             at(arrays.at(4)), Real(types.at(0)),         Real(types.at(1)), Real(types.at(2))};
  nb::gil_scoped_release free;
  pieces(pool, size, 1, [&](int64_t, int64_t first, int64_t last) { k.train->adamw(step, tensors, first, last); });
}

/// Calls a kernel for every document and key head. `tensors`: q, k, v, out, d_out, d_q, d_k, d_v; what it does not need
/// is 0.
void over_documents(Pool& pool, decltype(TrainKernels::attention) kernel, const DocumentShape& shape,
                    const std::vector<int64_t>& lengths, const std::vector<Address>& tensors) {
  std::vector<int64_t> starts;
  int64_t rows = 0, longest = 0;
  for (const int64_t length : lengths) starts.push_back(rows), rows += length, longest = std::max(longest, length);
  parallel(pool, static_cast<int64_t>(lengths.size()) * shape.kv_heads, [&](int64_t task, int) {
    thread_local Room room;
    const int64_t document = task / shape.kv_heads;
    const int64_t row = starts[document] * shape.head_dim * bytes(shape.type);
    const auto from = [&](int i, int64_t heads) { return tensors.at(i) ? at(tensors[i] + row * heads) : nullptr; };
    const int64_t h = shape.heads, k = shape.kv_heads;
    const DocumentTensors t{from(0, h), from(1, k), from(2, k), from(3, h), from(4, h), from(5, h), from(6, k), from(7, k)};
    kernel(shape, t, lengths[document], task % shape.kv_heads, room.of<float>(attention_scratch(longest, shape.head_dim)));
    room.let_go();
  });
}

void attention(Pool& pool, const Kernels& k, bool backward, int type, int64_t heads, int64_t kv_heads, int64_t head_dim,
               float scale, int64_t window, const std::vector<int64_t>& lengths, const std::vector<Address>& tensors) {
  nb::gil_scoped_release free;
  const DocumentShape shape{Real(type), heads, kv_heads, head_dim, scale, window};
  over_documents(pool, backward ? k.train->attention_backward : k.train->attention, shape, lengths, tensors);
}

}  // namespace

void bind_train(nb::module_& m) {
  m.def("gated", &gated, "act(gate) * up");
  m.def("gated_backward", &gated_backward, "Its derivatives");
  m.def("squares", &squares, "The sum of a tensor's squares");
  m.def("norm_rows", &norm_rows, "Rows that add to one sum of weights' gradients in rms_norm_backward");
  m.def("rms_norm", &rms_norm, "RMSNorm of rows");
  m.def("rms_norm_backward", &rms_norm_backward, "Derivatives of an RMSNorm");
  m.def("turn", &turn, "Rotary embedding, or its derivative");
  m.def("softmax_loss", &softmax_loss, "Cross-entropy of rows of scores; the scores become its derivative");
  m.def("adamw", &adamw, "A step of AdamW");
  m.def("attention", &attention, "Causal attention over documents, or its derivatives");
}

}  // namespace tokenmill
