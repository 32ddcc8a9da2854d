// A pass through a model, written down once as a list of steps and run many times: what a CUDA graph is to a GPU. The
// model's own code (nn) is run on symbols to write the list, so there is one definition of what a layer does.
//
// All buffers are float32 rows [T, width] at fixed addresses that the caller keeps alive; T may differ from run to run,
// up to the capacity the buffers were made for.
#pragma once

#include <functional>
#include <initializer_list>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"
#include "pool.h"

namespace tokenmill {

/// What differs from run to run.
struct Pass {
  int64_t rows = 0;               // T
  const int64_t* tokens = nullptr;     // [T]
  const int64_t* positions = nullptr;  // [T]
  const int64_t* slots = nullptr;      // [T]: block * block_size + offset, where each row's key goes
  std::vector<Sequence> sequences;
};

struct Context {
  const Kernels& kernels;
  const Pass& pass;
  int threads;
  bool invariant;       // a row's result must not depend on what else is in the pass
  std::vector<float*> scratch;  // one a thread
};

/// What the threads do between two meetings.
struct Step {
  virtual ~Step() = default;
  virtual int tasks(const Context& context) const = 0;
  virtual void run(const Context& context, int task, int thread) = 0;
  virtual std::string name() const = 0;
};

class Program : Job {
 public:
  explicit Program(int64_t max_rows) : max_rows(max_rows) {}

  /// Rows of a table by the pass's tokens, or by its positions.
  void embed(Weight weight, bool positions, float* y);
  /// Rows of another program's result, [max_rows, width], by the pass's tokens.
  void pick(const float* from, int64_t width, float* y);
  void linear(const float* x, std::vector<Weight> weights, std::vector<const float*> biases, std::vector<float*> ys);
  void rms_norm(const float* x, const float* weight, float eps, int64_t inner, int64_t size, float* y);
  void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t inner, int64_t size, float* y);
  void angles(const float* inverse, int64_t features, float scale, float* cos, float* sin);
  void rope(const float* x, const float* cos, const float* sin, int64_t heads, int64_t dim, int64_t rotated, float* y);
  void unary(Unary kind, const float* x, int64_t width, float* y);
  void gated(Unary kind, const float* gate, const float* up, int64_t width, float* y);
  void add(const float* a, const float* b, float scale_b, int64_t width, float* y);
  void scale(const float* x, float factor, int64_t width, float* y);
  void softcap(const float* x, float cap, int64_t width, float* y);
  void attend(const float* q, const float* k, const float* v, Cache cache, AttentionShape shape, float* y);
  /// A buffer is given to something else: what was prepared from its old contents is void.
  void written(const float* buffer);

  void run(Pool& pool, const Kernels& kernels, const Pass& pass, bool invariant);
  /// Nanoseconds of each step of the last timed run, by name.
  std::vector<std::pair<std::string, int64_t>> profile(Pool& pool, const Kernels& kernels, const Pass& pass, bool invariant);
  int size() const { return static_cast<int>(steps_.size()); }
  /// Tokens are below this: rows of the smallest table.
  int64_t vocabulary() const { return vocabulary_; }
  /// Some step asks for positions or slots, so a pass needs sequences.
  bool placed() const { return placed_; }

  const int64_t max_rows;

 private:
  template <class T>
  struct Aligned {
    std::unique_ptr<uint8_t[]> memory;
    T* data = nullptr;
    void resize(int64_t count) {
      memory = std::make_unique<uint8_t[]>(count * sizeof(T) + 64);  // zeroed: rows past the end are multiplied too
      data = reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(memory.get()) + 63) & ~uintptr_t{63});
    }
  };
  struct Shared {
    Aligned<int16_t> q;
    Aligned<float> scale;
    Aligned<int32_t> sum;
    Aligned<uint16_t> b;
    Aligned<uint16_t> gated;  // what a product with a gate leaves to the next, while it reads b
  };
  int stages() const override { return static_cast<int>(steps_.size()); }
  int tasks(int stage) const override { return steps_[stage]->tasks(*context_); }
  void run(int stage, int task, int thread) override { steps_[stage]->run(*context_, task, thread); }
  using Buffers = std::initializer_list<const float*>;
  using OfRow = std::function<void(const Context&, int64_t row)>;
  using When = std::function<bool(const Context&)>;
  void push(std::unique_ptr<Step> step, Buffers inputs, const float* output);
  void each_row(const char* name, int64_t floats, Buffers inputs, const float* output, OfRow f, When when = nullptr);
  void reads(const float* buffer);

  struct Prepared;
  struct Product;
  struct Rows;
  std::shared_ptr<Prepared> prepared_;  // the last one, while its source still holds
  Product* product_ = nullptr;    // the last step, if it is a product: another one with the same input joins it
  Rows* rows_ = nullptr;          // the last step, if it treats each row on its own: another such one joins it
  Product* gated_ = nullptr;      // the product whose gate was the last thing done
  std::vector<std::pair<const float*, bool*>> unread_;  // buffers and what to set if they are overwritten unread
  std::vector<std::unique_ptr<Step>> steps_;
  Shared shared_;
  std::vector<std::unique_ptr<float[]>> scratch_;
  int64_t max_k_ = 32, gated_k_ = 0, head_dim_ = 16;
  int64_t vocabulary_ = INT64_MAX;
  bool placed_ = false;
  const Context* context_ = nullptr;
};

}  // namespace tokenmill
