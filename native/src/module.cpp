// The extension module. Addresses cross as integers (Tensor.data_ptr()): DLPack costs microseconds a tensor, and a step
// of a small model has four milliseconds in all. tokenmill.ops.native is the only caller and checks what it passes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>

#include "kernels.h"
#include "pack.h"
#include "pool.h"
#include "program.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace tokenmill;

namespace tokenmill {
void bind_train(nb::module_& m);
void bind_product(nb::module_& m);
}

namespace {

using Address = uintptr_t;
template <class T>
T* at(Address address) {
  return reinterpret_cast<T*>(address);
}

Kind kind_named(const std::string& name) {
  const Kind kind = kind_of(name.c_str());
  if (kind == Kind::Count) throw std::invalid_argument("no packed format is called " + name);
  return kind;
}

void pack_rows(Pool& pool, const Weight& w, Address rows) {
  nb::gil_scoped_release free;
  parallel(pool, w.panels(), [&](int64_t p, int) {
    pack_panel(w, p, at<uint8_t>(rows), const_cast<uint8_t*>(w.panel(p)));
  });
}

void pack_code_rows(Pool& pool, const Weight& w, Address codes, Address scales, Address minima) {
  nb::gil_scoped_release free;
  parallel(pool, w.panels(), [&](int64_t p, int) {
    pack_codes(w, p, at<uint8_t>(codes), at<uint16_t>(scales), at<uint16_t>(minima), const_cast<uint8_t*>(w.panel(p)));
  });
}

void dequantise_rows(Pool& pool, const Kernels& k, const Weight& w, Address rows, int64_t count, Address out) {
  nb::gil_scoped_release free;
  parallel(pool, count, [&](int64_t i, int) { k.dequantise(w, at<int64_t>(rows)[i], at<float>(out) + i * w.k); });
}

bool encode_rows(Pool& pool, const Kernels& k, const std::string& name, Address x, Address importance, int64_t rows,
                 int64_t columns, Address to) {
  const BlockType type = block_type(name.c_str());
  if (type == BlockType::Count) throw std::invalid_argument("no block type is called " + name);
  nb::gil_scoped_release free;
  const int64_t step = std::max<int64_t>(1, (1 << 16) / columns);
  std::atomic<bool> finite = true;
  parallel(pool, (rows + step - 1) / step, [&](int64_t i, int) {
    const int64_t last = std::min(rows, (i + 1) * step);
    if (!k.encode(type, at<float>(x), at<float>(importance), columns, i * step, last, at<uint8_t>(to))) finite = false;
  });
  return finite;
}

/// Reads `bytes` on all threads; returns a sum, so that nothing is left out.
int64_t stream(Pool& pool, const Kernels& k, Address from, int64_t bytes) {
  nb::gil_scoped_release free;
  constexpr int64_t piece = 1 << 18;
  std::atomic<int64_t> total = 0;
  parallel(pool, (bytes + piece - 1) / piece, [&](int64_t i, int) {
    total += k.stream(at<uint8_t>(from) + i * piece, std::min(piece, bytes - i * piece));
  });
  return total;
}

/// A pass as the engine schedules it, and the memory that its parts lie in.
struct Work {
  std::vector<int64_t> tokens, positions, slots;
  std::vector<std::vector<int32_t>> blocks;
  std::vector<Sequence> sequences;

  /// `spans`: of each sequence, where its tokens begin and how many they are; `blocks`: its block table.
  Work(const Program& program, std::vector<int64_t> all, const std::vector<std::pair<int64_t, int64_t>>& spans,
       std::vector<std::vector<int32_t>> tables, int64_t block_size)
      : tokens(std::move(all)), blocks(std::move(tables)) {
    for (const int64_t token : tokens)
      if (token < 0 || token >= program.vocabulary()) throw std::out_of_range("a token is not in the vocabulary");
    if (static_cast<int64_t>(tokens.size()) > program.max_rows)
      throw std::out_of_range("more tokens than the program has rows");
    if (spans.size() != blocks.size()) throw std::invalid_argument("a block table for each span");
    if (block_size < 1) throw std::invalid_argument("blocks are of at least one position");
    for (size_t i = 0; i < spans.size(); i++) {
      const auto [start, count] = spans[i];
      const int64_t first = static_cast<int64_t>(positions.size()), end = start + count;
      if (start < 0 || count < 1) throw std::out_of_range("a span begins before its sequence, or is empty");
      if (static_cast<int64_t>(blocks[i].size()) * block_size < end) throw std::out_of_range("a span ends past its blocks");
      for (int64_t p = start; p < end; p++) {
        positions.push_back(p);
        slots.push_back(blocks[i][p / block_size] * block_size + p % block_size);
      }
      sequences.push_back({first, count, end, blocks[i].data()});
    }
    if ((program.placed() || !spans.empty()) && positions.size() != tokens.size())
      throw std::invalid_argument("spans are to cover the tokens");
  }
  Pass pass() const {
    return {static_cast<int64_t>(tokens.size()), tokens.data(), positions.data(), slots.data(), sequences};
  }
};

void bind_program(nb::module_& m) {
  nb::class_<Program>(m, "Program")
      .def(nb::init<int64_t>(), "max_rows"_a)
      .def_prop_ro("max_rows", [](const Program& p) { return p.max_rows; })
      .def("__len__", &Program::size)
      .def("embed", [](Program& p, const Weight& w, bool positions, Address y) { p.embed(w, positions, at<float>(y)); })
      .def("linear",
           [](Program& p, Address x, const Weight& w, Address bias, Address y) {
             p.linear(at<float>(x), {w}, {at<float>(bias)}, {at<float>(y)});
           })
      .def("rms_norm",
           [](Program& p, Address x, Address w, float eps, int64_t inner, int64_t size, Address y) {
             p.rms_norm(at<float>(x), at<float>(w), eps, inner, size, at<float>(y));
           })
      .def("layer_norm",
           [](Program& p, Address x, Address w, Address b, float eps, int64_t inner, int64_t size, Address y) {
             p.layer_norm(at<float>(x), at<float>(w), at<float>(b), eps, inner, size, at<float>(y));
           })
      .def("angles",
           [](Program& p, Address inverse, int64_t features, float scale, Address cos, Address sin) {
             p.angles(at<float>(inverse), features, scale, at<float>(cos), at<float>(sin));
           })
      .def("rope",
           [](Program& p, Address x, Address cos, Address sin, int64_t heads, int64_t dim, int64_t rotated, Address y) {
             p.rope(at<float>(x), at<float>(cos), at<float>(sin), heads, dim, rotated, at<float>(y));
           })
      .def("unary", [](Program& p, int kind, Address x, int64_t width,
                       Address y) { p.unary(static_cast<Unary>(kind), at<float>(x), width, at<float>(y)); })
      .def("gated",
           [](Program& p, int kind, Address gate, Address up, int64_t width, Address y) {
             p.gated(static_cast<Unary>(kind), at<float>(gate), at<float>(up), width, at<float>(y));
           })
      .def("add", [](Program& p, Address a, Address b, float scale, int64_t width,
                     Address y) { p.add(at<float>(a), at<float>(b), scale, width, at<float>(y)); })
      .def("scale", [](Program& p, Address x, float factor, int64_t width,
                       Address y) { p.scale(at<float>(x), factor, width, at<float>(y)); })
      .def("softcap", [](Program& p, Address x, float cap, int64_t width,
                         Address y) { p.softcap(at<float>(x), cap, width, at<float>(y)); })
      .def("attend",
           [](Program& p, Address q, Address k, Address v, Address keys, Address values, int cache, int64_t block_size,
              int64_t kv_heads, int64_t head_dim, int64_t heads, float scale, float softcap, int64_t window, Address y) {
             p.attend(at<float>(q), at<float>(k), at<float>(v),
                      {at<void>(keys), at<void>(values), static_cast<CacheType>(cache), block_size, kv_heads, head_dim},
                      {heads, scale, softcap, window}, at<float>(y));
           })
      .def("pick", [](Program& p, Address from, int64_t width, Address y) { p.pick(at<float>(from), width, at<float>(y)); })
      .def("run",
           [](Program& p, Pool& pool, const Kernels& k, int64_t rows, bool invariant) {
             nb::gil_scoped_release free;
             p.run(pool, k, {rows, nullptr, nullptr, nullptr, {}}, invariant);
           })
      .def("run_pass",
           [](Program& p, Pool& pool, const Kernels& k, std::vector<int64_t> tokens,
              const std::vector<std::pair<int64_t, int64_t>>& spans, std::vector<std::vector<int32_t>> blocks,
              int64_t block_size, bool invariant) {
             nb::gil_scoped_release free;
             p.run(pool, k, Work(p, std::move(tokens), spans, std::move(blocks), block_size).pass(), invariant);
           })
      .def("profile", [](Program& p, Pool& pool, const Kernels& k, std::vector<int64_t> tokens,
                         const std::vector<std::pair<int64_t, int64_t>>& spans, std::vector<std::vector<int32_t>> blocks,
                         int64_t block_size) {
        return p.profile(pool, k, Work(p, std::move(tokens), spans, std::move(blocks), block_size).pass(), false);
      });
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // the pool lives as long as the process
  m.attr("interface") = 2;       // what ops/native.py expects
  nb::class_<Kernels>(m, "Kernels").def_ro("name", &Kernels::name).def_ro("tiles", &Kernels::tiles);
  m.def("kernels", [](const std::string& name) { return &kernels(name.c_str()); }, nb::rv_policy::reference);
  nb::class_<Pool>(m, "Pool")
      .def(nb::init<int, std::vector<int>>(), "threads"_a, "cpus"_a)
      .def_prop_ro("threads", &Pool::threads);
  nb::class_<Weight>(m, "Weight")
      .def("__init__",
           [](Weight* self, const std::string& kind, int64_t n, int64_t k, int group_shift, Address data) {
             new (self) Weight{kind_named(kind), n, k, group_shift, at<uint8_t>(data)};
           })
      .def_prop_ro("nbytes", [](const Weight& w) { return w.panels() * w.panel_bytes(); });
  m.def("pack_rows", &pack_rows, "A matrix of GGUF blocks, or of floats, into the weight's memory");
  m.def("pack_codes", &pack_code_rows, "Codes with scales into the weight's memory");
  m.def("dequantise", &dequantise_rows, "Rows of a weight to float32");
  m.def("encode", &encode_rows, "Floats into GGUF blocks; false where a number is not finite");
  m.def("stream", &stream, "Reads memory as a product does: for measuring the roof");
  bind_program(m);
  bind_train(m);
  bind_product(m);
}
