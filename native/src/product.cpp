// A product is cut so that packed sides stay in caches: parts of k, of columns, of rows. Sums are float32 and k is cut the
// same way whatever the number of threads, so results are the same too.
#include "product.h"

#include <nanobind/nanobind.h>

#include <algorithm>
#include <stdexcept>

#include "pool.h"
#include "room.h"
#include "train.h"

namespace nb = nanobind;

namespace tokenmill {
namespace {

using Address = uintptr_t;

constexpr int64_t longest_k = 2048;
constexpr int64_t right_values = 1 << 21;  // of the right side, packed at a time: 4 MB
constexpr int64_t most_rows = 128;         // of the left side, packed at a time: at most 512 KB, in the second-level cache
constexpr int64_t cached_results = 1 << 23;  // 16 MB: more go past the caches

int64_t parts(int64_t size, int64_t part) { return (size + part - 1) / part; }
int64_t padded(int64_t size) { return parts(size, 32) * 32; }

/// y [m, n] = left [m, k] times right [n, k]. The right side is packed first; a task packs some rows of the left side and
/// multiplies them with all that is packed.
class Product {
 public:
  Product(Pool& pool, const ProductKernels& kernels, Side left, Side right, uint16_t* y, int64_t m, int64_t n, int64_t k)
      : pool_(pool), kernels_(kernels), left_(left), right_(right), y_(y), m_(m), n_(n), k_(k) {
    while (rows_ > 32 && parts(m, rows_) < 8 * pool.threads()) rows_ /= 2;
  }

  void run() {
    thread_local Room room;
    const int64_t ks = part(k_, longest_k), columns = part(n_, right_values / ks);
    const int64_t sums = ks < k_ ? 2 * padded(m_) * columns : 0;
    packed_ = room.of<uint16_t>(columns * ks + sums);
    sums_ = sums ? reinterpret_cast<float*>(packed_ + columns * ks) : nullptr;
    for (int64_t j = 0; j < n_; j += columns)
      for (int64_t k = 0; k < k_; k += ks) {
        const Range c{j, std::min(columns, n_ - j)}, in{k, std::min(ks, k_ - k)};
        pack(c, in);
        multiply(c, in);
      }
    room.let_go();
  }

 private:
  struct Range {
    int64_t from, count;
  };

  /// Nearly equal parts of at most `most`, in whole panels.
  static int64_t part(int64_t size, int64_t most) { return padded(parts(size, parts(size, std::max<int64_t>(most, 32)))); }

  void pack(Range columns, Range in) {
    parallel(pool_, parts(columns.count, most_rows), [&](int64_t task, int) {
      const int64_t first = task * most_rows, count = std::min(most_rows, columns.count - first);
      kernels_.pack(right_, true, columns.from + first, count, in.from, in.count, packed_ + first * padded(in.count));
    });
  }

  void multiply(Range columns, Range in) {
    parallel(pool_, parts(m_, rows_), [&](int64_t task, int) {
      thread_local Room room;
      Block b{};
      const int64_t first = task * rows_;
      b.rows = std::min(rows_, m_ - first), b.columns = columns.count, b.steps = parts(in.count, 32);
      uint16_t* left = room.of<uint16_t>(most_rows * longest_k);
      kernels_.pack(left_, false, first, b.rows, in.from, in.count, left);
      b.left = left, b.right = packed_;
      b.ld_sums = parts(columns.count, 32);
      b.sums = sums_ ? sums_ + first / 32 * b.ld_sums * 1024 : nullptr;
      b.first = in.from == 0, b.last = in.from + in.count == k_;
      b.y = y_ + first * n_ + columns.from, b.ldy = n_, b.past_caches = m_ * n_ > cached_results;
      kernels_.multiply(b);
    });
  }

  Pool& pool_;
  const ProductKernels& kernels_;
  Side left_, right_;
  uint16_t* y_;
  int64_t m_, n_, k_, rows_ = most_rows;
  uint16_t* packed_ = nullptr;
  float* sums_ = nullptr;
};

void product(Pool& pool, const Kernels& kernels, Address left, int64_t left_stride, bool left_across, Address right,
             int64_t right_stride, bool right_across, Address y, int64_t m, int64_t n, int64_t k) {
  const ProductKernels* found = kernels.train->product;
  if (!found) throw std::invalid_argument("this instruction set has no products for training");
  nb::gil_scoped_release free;
  Product(pool, *found, {reinterpret_cast<uint16_t*>(left), left_stride, left_across},
          {reinterpret_cast<uint16_t*>(right), right_stride, right_across}, reinterpret_cast<uint16_t*>(y), m, n, k)
      .run();
}

}  // namespace

void bind_product(nb::module_& m) {
  m.def("has_product", [](const Kernels& k) { return k.train->product != nullptr; });
  m.def("product", &product, "y [m, n] = left [m, k] times right [n, k], all bfloat16, each side stored either way");
}

}  // namespace tokenmill
