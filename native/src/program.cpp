#include "program.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

namespace tokenmill {
namespace {

/// Rows that one task takes, so that every thread gets a few tasks and none is tiny.
int64_t rows_per_task(const Context& c, int64_t floats_per_row) {
  const int64_t worth_it = std::max<int64_t>(1, 4096 / std::max<int64_t>(1, floats_per_row));
  return std::max<int64_t>(worth_it, (c.pass.rows + 4 * c.threads - 1) / (4 * c.threads));
}

/// From how many rows on a product goes to matrix tiles: turning weights into bfloat16 must pay (see performance.md).
constexpr int64_t tiles_from = 12;

bool tiles(const Context& c) { return c.kernels.tiles && !c.invariant && c.pass.rows >= tiles_from; }

}  // namespace

/// Steps that treat each row on its own, one after the other: a row goes through all of them while it is in the
/// first-level cache, and the threads meet once.
struct Program::Rows : Step {
  struct Part {
    const char* name;
    OfRow f;
    When when;  // null: always
  };
  bool runs(const Part& part, const Context& c) const { return !part.when || part.when(c); }
  int tasks(const Context& c) const override {
    const auto any = [&](const Part& part) { return runs(part, c); };
    if (std::none_of(parts.begin(), parts.end(), any)) return 0;
    const int64_t n = rows_per_task(c, floats);
    return static_cast<int>((c.pass.rows + n - 1) / n);
  }
  void run(const Context& c, int task, int) override {
    const int64_t n = rows_per_task(c, floats), first = task * n, last = std::min(c.pass.rows, first + n);
    for (int64_t t = first; t < last; t++)
      for (const Part& part : parts)
        if (runs(part, c)) part.f(c, t);
  }
  std::string name() const override {
    std::string all;
    for (const Part& part : parts) all += (all.empty() ? "" : ", ") + std::string(part.name);
    return all;
  }
  std::vector<Part> parts;
  int64_t floats = 0;  // a row's
};

/// A product's inputs, quantised or rounded to bfloat16 for the tiles, in buffers that all products share: what one
/// prepares is used up before the next does.
struct Program::Prepared {
  bool needed(const Context& c) const { return tiles(c) ? !gated : quantised; }
  void row(const Context& c, int64_t t) const {
    const int64_t kp = (k + chunk - 1) / chunk * chunk;
    if (tiles(c)) c.kernels.to_bf16(x + t * k, k, to.b.data + t * kp);
    else c.kernels.quantise(x + t * k, k, to.q.data + t * kp, to.scale.data + t * kp / 32, to.sum.data + t * kp / 16);
  }
  Inputs inputs(const Context& c) const {
    return {x, to.q.data, to.scale.data, to.sum.data, (gated ? to.gated : to.b).data, c.pass.rows, k};
  }

  const float* x;
  int64_t k;
  const Shared& to;
  bool gated;              // the product before this one leaves them where tiles are used
  bool quantised = false;  // some weight multiplies inputs of 16 bits
};

/// One input times one or several weights; matrix tiles may put a gate between two of them.
struct Program::Product : Step {
  struct Part {
    Weight weight;
    const float* bias;
    float* y;
    bool unread = false;  // nobody looks at y
  };
  struct Gate {
    Unary kind;
    float* y;
    bool to_next = false;  // the next product takes it rounded
    bool unread = false;
  };
  bool gates(const Context& c) const { return gate && tiles(c); }
  /// Panels of one task: small enough that the threads finish together.
  int64_t per_task(const Context& c) const {
    const int64_t n = std::clamp<int64_t>(panels / (6 * c.threads), 1, 64);
    return c.threads == 1 ? panels : (n + 1) / 2 * 2;  // tiles take panels in pairs
  }
  int64_t tasks_of(const Part& part, int64_t n) const { return (part.weight.panels() + n - 1) / n; }
  int tasks(const Context& c) const override {
    const int64_t n = per_task(c);
    if (gates(c)) return static_cast<int>(tasks_of(parts[0], n));
    int64_t total = 0;
    for (const Part& part : parts) total += tasks_of(part, n);
    return static_cast<int>(total);
  }
  void run(const Context& c, int task, int thread) override {
    const int64_t n = per_task(c);
    int64_t left = task;
    if (gates(c)) {
      const auto out = [](const Part& part) { return part.unread ? nullptr : part.y; };
      uint16_t* rounded = gate->to_next ? inputs->to.gated.data : nullptr;
      const Gated outputs{gate->kind, out(parts[0]), out(parts[1]), gate->unread ? nullptr : gate->y, rounded};
      const int64_t first = left * n, last = std::min(parts[0].weight.panels(), first + n);
      c.kernels.gated_linear(parts[0].weight, parts[1].weight, first, last, inputs->inputs(c), parts[0].bias, parts[1].bias,
                             outputs, c.scratch[thread]);
      return;
    }
    for (const Part& part : parts) {
      const int64_t here = tasks_of(part, n);
      if (left >= here) {
        left -= here;
        continue;
      }
      const int64_t first = left * n, last = std::min(part.weight.panels(), first + n);
      c.kernels.linear(part.weight, first, last, inputs->inputs(c), part.bias, part.y, part.weight.n, tiles(c),
                       c.scratch[thread]);
      return;
    }
  }
  std::string name() const override { return "linear"; }
  std::shared_ptr<Prepared> inputs;
  int64_t panels = 0;
  std::vector<Part> parts;
  std::unique_ptr<Gate> gate;
};

namespace {

/// Attends to keys and values that have been written: rows of decoding in splits of keys, whole prompts in tiles.
struct Attention {
  static constexpr int64_t split = 512, row_tile = 64;
  const float* q;
  Cache cache;
  AttentionShape shape;
  float* y;
  /// Of one task. By rows: some key heads over one split of a row's keys; by tiles: one query head of 64 rows.
  struct Plan {
    int64_t first_task, first_part, splits;
    bool by_row;
  };
  std::vector<Plan> plans{};  // of each sequence
  int64_t total_tasks = 0;
  int64_t together = 1;        // key heads of a task: all, where there are enough tasks without
  std::vector<float> partial{};  // of rows' heads with several splits: [G * D] sums; of all of them [G] maxima, [G] totals

  int64_t groups() const { return shape.heads / cache.heads; }
  int64_t partial_floats() const { return groups() * (cache.head_dim + 2); }
  Sequence row_of(const Sequence& s, int64_t row) const { return {s.start + row, 1, s.length - s.count + row + 1, s.blocks}; }

  /// Cuts a pass into tasks.
  void plan(const Context& c) {
    int64_t parts = 0;
    plans.clear();
    for (const Sequence& s : c.pass.sequences) {
      const bool by_row = c.invariant || s.count < 4;
      plans.push_back({0, parts, (s.length + split - 1) / split, by_row});
      if (by_row) parts += s.count * cache.heads * plans.back().splits;
    }
    together = parts >= 4 * c.threads * cache.heads ? cache.heads : 1;
    total_tasks = 0;
    for (size_t i = 0; i < plans.size(); i++) {
      const int64_t count = c.pass.sequences[i].count;
      plans[i].first_task = total_tasks;
      total_tasks += plans[i].by_row ? count * plans[i].splits * (cache.heads / together)
                                     : (count + row_tile - 1) / row_tile * shape.heads;
    }
    if (static_cast<int64_t>(partial.size()) < parts * partial_floats()) partial.resize(parts * partial_floats());
  }
};

struct AttendStep : Step {
  explicit AttendStep(std::shared_ptr<Attention> a) : a(std::move(a)) {}
  int tasks(const Context& c) const override {
    a->plan(c);  // asked before anything runs
    return static_cast<int>(a->total_tasks);
  }
  void run(const Context& c, int task, int thread) override {
    const auto after = [](int64_t t, const Attention::Plan& plan) { return t < plan.first_task; };
    const size_t i = std::upper_bound(a->plans.begin(), a->plans.end(), task, after) - a->plans.begin() - 1;
    const Attention::Plan& plan = a->plans[i];
    const Sequence& s = c.pass.sequences[i];
    const int64_t local = task - plan.first_task;
    if (plan.by_row) {
      const int64_t units = a->cache.heads / a->together, head = local % units * a->together;
      by_row(c, s, plan, local / units / plan.splits, local / units % plan.splits, head, c.scratch[thread]);
      return;
    }
    const int64_t tile = local / a->shape.heads, first = tile * Attention::row_tile;
    c.kernels.attend_tile(a->cache, a->shape, s, a->q, local % a->shape.heads, first,
                          std::min(s.count, first + Attention::row_tile), a->y, c.scratch[thread]);
  }
  /// Some heads of a row over one split of its keys. Where that is all of them, the result is final.
  void by_row(const Context& c, const Sequence& s, const Attention::Plan& plan, int64_t r, int64_t split, int64_t first,
              float* scratch) {
    const int64_t d = a->cache.head_dim, g = a->groups();
    const Sequence row = a->row_of(s, r);
    const int64_t low = a->shape.window ? std::max<int64_t>(0, row.length - a->shape.window) : 0;
    const int64_t from = std::max(split * Attention::split, low / 32 * 32);
    const int64_t to = std::min(row.length, (split + 1) * Attention::split);
    for (int64_t head = first; head < first + a->together; head++) {
      const int64_t place = (row.start * a->cache.heads + head) * g * d, part = (r * a->cache.heads + head) * plan.splits + split;
      float* sums = a->partial.data() + (plan.first_part + part) * a->partial_floats();
      float *top = sums + g * d, *total = top + g, *out = plan.splits == 1 ? a->y + place : sums;
      if (from >= to) {  // all of this split has left the window, or lies after this row
        std::fill(top, top + g, -INFINITY);
        continue;
      }
      const int64_t next = head + 1 < first + a->together ? head + 1 : -1;
      c.kernels.attend_row(a->cache, a->shape, row, a->q + place, head, next, from, to, out, top, total, scratch);
      if (plan.splits > 1) continue;
      for (int64_t j = 0; j < g; j++)
        for (int64_t f = 0; f < d; f++) out[j * d + f] /= total[j];
    }
  }
  std::string name() const override { return "attend"; }
  std::shared_ptr<Attention> a;
};

/// Puts the splits of each row together (Dao 2023, "Flash-Decoding").
struct MergeStep : Step {
  explicit MergeStep(std::shared_ptr<Attention> a) : a(std::move(a)) {}
  int tasks(const Context& c) const override {
    const auto split = [](const Attention::Plan& plan) { return plan.by_row && plan.splits > 1; };
    return std::any_of(a->plans.begin(), a->plans.end(), split) ? static_cast<int>(c.pass.sequences.size()) : 0;
  }
  void run(const Context& c, int task, int) override {
    const Sequence& s = c.pass.sequences[task];
    const Attention::Plan& plan = a->plans[task];
    if (!plan.by_row || plan.splits == 1) return;
    const int64_t g = a->groups(), d = a->cache.head_dim;
    const float* part = a->partial.data() + plan.first_part * a->partial_floats();
    for (int64_t row = 0; row < s.count; row++)
      for (int64_t head = 0; head < a->cache.heads; head++, part += plan.splits * a->partial_floats())
        for (int64_t j = 0; j < g; j++) merge(part, plan.splits, j, a->y + ((s.start + row) * a->shape.heads + head * g + j) * d);
  }
  void merge(const float* parts, int64_t splits, int64_t j, float* y) const {
    const int64_t g = a->groups(), d = a->cache.head_dim, stride = a->partial_floats();
    float top = -INFINITY, total = 0;
    for (int64_t i = 0; i < splits; i++) top = std::fmax(top, parts[i * stride + g * d + j]);
    std::memset(y, 0, d * sizeof(float));
    for (int64_t i = 0; i < splits; i++) {
      const float* part = parts + i * stride;
      if (part[g * d + j] == -INFINITY) continue;
      const float factor = std::exp(part[g * d + j] - top);
      total += factor * part[g * d + g + j];
      for (int64_t f = 0; f < d; f++) y[f] += factor * part[j * d + f];
    }
    for (int64_t f = 0; f < d; f++) y[f] /= total;
  }
  std::string name() const override { return "merge"; }
  std::shared_ptr<Attention> a;
};

}  // namespace

void Program::push(std::unique_ptr<Step> step, Buffers inputs, const float* output) {
  steps_.push_back(std::move(step));
  product_ = nullptr, rows_ = nullptr, gated_ = nullptr;
  for (const float* input : inputs) reads(input);
  written(output);
}

void Program::each_row(const char* name, int64_t floats, Buffers inputs, const float* output, OfRow f, When when) {
  if (!rows_) {
    auto rows = std::make_unique<Rows>();
    Rows* here = rows.get();
    push(std::move(rows), {}, nullptr);
    rows_ = here;
  }
  rows_->parts.push_back({name, std::move(f), std::move(when)});
  rows_->floats += floats;
  gated_ = nullptr;
  for (const float* input : inputs) reads(input);
  written(output);
}

void Program::reads(const float* buffer) {
  std::erase_if(unread_, [&](const auto& entry) { return entry.first == buffer; });
}

void Program::written(const float* buffer) {
  if (prepared_ && prepared_->x == buffer) prepared_ = nullptr, product_ = nullptr;
  for (const auto& [unread, flag] : unread_)
    if (unread == buffer) *flag = true;
  reads(buffer);
}

void Program::embed(Weight w, bool positions, float* y) {
  each_row("embed", w.k, {}, y, [=](const Context& c, int64_t t) {
    c.kernels.dequantise(w, (positions ? c.pass.positions : c.pass.tokens)[t], y + t * w.k);
  });
  if (positions) placed_ = true;
  else vocabulary_ = std::min(vocabulary_, w.n);
}
void Program::pick(const float* from, int64_t width, float* y) {
  each_row("pick", width, {from}, y, [=](const Context& c, int64_t t) {
    std::memcpy(y + t * width, from + c.pass.tokens[t] * width, width * sizeof(float));
  });
  vocabulary_ = std::min(vocabulary_, max_rows);
}

void Program::linear(const float* x, std::vector<Weight> weights, std::vector<const float*> biases, std::vector<float*> ys) {
  const int64_t k = weights[0].k;
  if (!prepared_ || prepared_->x != x || prepared_->k != k) {
    Product* before = gated_ && gated_->gate->y == x ? gated_ : nullptr;
    auto prepared = std::make_shared<Prepared>(x, k, shared_, before != nullptr);
    const auto row = [prepared](const Context& c, int64_t t) { prepared->row(c, t); };
    const auto needed = [prepared](const Context& c) { return prepared->needed(c); };
    if (before) before->gate->to_next = true, each_row("prepare", 2 * k, {}, nullptr, row, needed);
    else each_row("prepare", 2 * k, {x}, nullptr, row, needed);
    prepared_ = prepared;
  }
  if (!product_) {
    auto product = std::make_unique<Product>();
    Product* here = product.get();
    product->inputs = prepared_;
    push(std::move(product), {}, nullptr);
    product_ = here;
  }
  for (size_t i = 0; i < weights.size(); i++) {
    product_->parts.push_back({weights[i], biases[i], ys[i]});
    product_->panels += weights[i].panels();
    prepared_->quantised |= weights[i].format().bits != 0;
    if (weights[i].kind == Kind::F32) reads(x);
    max_k_ = std::max(max_k_, k);
  }
  for (const float* y : ys) written(y);
}

void Program::rms_norm(const float* x, const float* weight, float eps, int64_t inner, int64_t size, float* y) {
  each_row("rms_norm", inner * size, {x}, y, [=](const Context& c, int64_t t) {
    for (int64_t i = t * inner; i < (t + 1) * inner; i++) c.kernels.rms_norm(x + i * size, weight, eps, size, y + i * size);
  });
}
void Program::layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t inner, int64_t size,
                         float* y) {
  each_row("layer_norm", inner * size, {x}, y, [=](const Context& c, int64_t t) {
    for (int64_t i = t * inner; i < (t + 1) * inner; i++)
      c.kernels.layer_norm(x + i * size, weight, bias, eps, size, y + i * size);
  });
}
void Program::angles(const float* inverse, int64_t features, float scale, float* cos, float* sin) {
  each_row("angles", 32 * features, {}, cos, [=](const Context& c, int64_t t) {
    const float position = static_cast<float>(c.pass.positions[t]);
    for (int64_t i = 0; i < features; i++) {
      const float angle = position * inverse[i];
      float* at = cos + t * 2 * features + i;
      at[0] = at[features] = std::cos(angle) * scale;
      at = sin + t * 2 * features + i;
      at[0] = at[features] = std::sin(angle) * scale;
    }
  });
  written(sin);
  placed_ = true;
}
void Program::rope(const float* x, const float* cos, const float* sin, int64_t heads, int64_t dim, int64_t rotated, float* y) {
  each_row("rope", heads * dim, {x, cos, sin}, y, [=](const Context& c, int64_t t) {
    c.kernels.rope(x + t * heads * dim, cos + t * rotated, sin + t * rotated, heads, dim, rotated, y + t * heads * dim);
  });
}
void Program::unary(Unary kind, const float* x, int64_t width, float* y) {
  each_row("activation", width, {x}, y,
           [=](const Context& c, int64_t t) { c.kernels.unary(kind, x + t * width, width, y + t * width); });
}

void Program::gated(Unary kind, const float* gate, const float* up, int64_t width, float* y) {
  const auto fits = [&](const Product::Part& part, const float* output) {
    return part.y == output && part.weight.n == width && part.weight.kind != Kind::F32;
  };
  Product* product = product_ && width % chunk == 0 && product_->parts.size() == 2 && fits(product_->parts[0], gate) &&
                             fits(product_->parts[1], up) && !product_->inputs->gated  // else it would read what it writes
                         ? product_
                         : nullptr;
  const auto row = [=](const Context& c, int64_t t) {
    c.kernels.gated(kind, gate + t * width, up + t * width, width, y + t * width);
  };
  each_row("gated", 2 * width, {gate, up}, y, row, [=](const Context& c) { return !product || !product->gates(c); });
  if (!product) return;
  product->gate = std::make_unique<Product::Gate>(kind, y);
  for (Product::Part& part : product->parts) unread_.emplace_back(part.y, &part.unread);
  unread_.emplace_back(y, &product->gate->unread);
  gated_ = product;
  gated_k_ = std::max(gated_k_, width);
}

void Program::add(const float* a, const float* b, float scale_b, int64_t width, float* y) {
  each_row("add", width, {a, b}, y, [=](const Context& c, int64_t t) {
    c.kernels.add(a + t * width, b + t * width, scale_b, width, y + t * width);
  });
}
void Program::scale(const float* x, float factor, int64_t width, float* y) {
  each_row("scale", width, {x}, y,
           [=](const Context& c, int64_t t) { c.kernels.scale(x + t * width, factor, width, y + t * width); });
}
void Program::softcap(const float* x, float cap, int64_t width, float* y) {
  each_row("softcap", width, {x}, y,
           [=](const Context& c, int64_t t) { c.kernels.softcap(x + t * width, cap, width, y + t * width); });
}
void Program::attend(const float* q, const float* k, const float* v, Cache cache, AttentionShape shape, float* y) {
  const int64_t width = cache.heads * cache.head_dim;
  each_row("write cache", 4096, {k, v}, nullptr, [=](const Context& c, int64_t t) {
    c.kernels.write_cache(cache, c.pass.slots[t], k + t * width, v + t * width);
  });
  auto a = std::make_shared<Attention>(Attention{q, cache, shape, y});
  head_dim_ = std::max(head_dim_, cache.head_dim);
  push(std::make_unique<AttendStep>(a), {q}, nullptr);
  push(std::make_unique<MergeStep>(a), {}, y);
  placed_ = true;
}

void Program::run(Pool& pool, const Kernels& kernels, const Pass& pass, bool invariant) {
  if (static_cast<int>(scratch_.size()) != pool.threads()) {  // the first run: every step is known by now
    const int64_t kp = (max_k_ + chunk - 1) / chunk * chunk, floats = scratch_floats(max_k_, head_dim_);
    shared_.q.resize(max_rows * kp);
    shared_.scale.resize(max_rows * kp / 32);
    shared_.sum.resize(max_rows * kp / 16);
    const int64_t rounded_rows = (max_rows + 31) / 32 * 32;
    if (kernels.tiles) shared_.b.resize(rounded_rows * kp), shared_.gated.resize(rounded_rows * gated_k_);
    scratch_.clear();
    // Not zeroed: a program of one product must not pay for memory that it never touches
    for (int i = 0; i < pool.threads(); i++) scratch_.push_back(std::make_unique_for_overwrite<float[]>(floats));
  }
  Context context{kernels, pass, pool.threads(), invariant, {}};
  for (auto& s : scratch_) context.scratch.push_back(s.get());
  context_ = &context;
  pool.run(*this);
  context_ = nullptr;
}

std::vector<std::pair<std::string, int64_t>> Program::profile(Pool& pool, const Kernels& kernels, const Pass& pass,
                                                              bool invariant) {
  std::vector<std::pair<std::string, int64_t>> times;
  std::vector<std::unique_ptr<Step>> all;
  std::swap(all, steps_);
  for (auto& step : all) {
    steps_.clear();
    steps_.push_back(std::move(step));
    const auto begin = std::chrono::steady_clock::now();
    run(pool, kernels, pass, invariant);
    const auto end = std::chrono::steady_clock::now();
    times.emplace_back(steps_[0]->name(), std::chrono::duration_cast<std::chrono::nanoseconds>(end - begin).count());
    step = std::move(steps_[0]);
  }
  std::swap(all, steps_);
  return times;
}

}  // namespace tokenmill
