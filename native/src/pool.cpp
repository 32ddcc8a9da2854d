#include "pool.h"

#if defined(__linux__)
#include <pthread.h>
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tokenmill {
namespace {

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

void bind_to([[maybe_unused]] std::thread& thread, [[maybe_unused]] int cpu) {
#if defined(__linux__)
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  pthread_setaffinity_np(thread.native_handle(), sizeof set, &set);  // a core that is not ours: stay where we are
#endif
}

/// Spins for some 50 microseconds, then gives the core away between looks.
template <class Ready>
void wait_for(Ready&& ready) {
  for (int i = 0; !ready(); i++) {
    if (i < 2000) relax();
    else std::this_thread::yield();
  }
}

}  // namespace

Pool::Pool(int threads, std::vector<int> cpus) : cpus_(std::move(cpus)) {
  if (static_cast<int>(cpus_.size()) < threads) cpus_.clear();
  for (int i = 1; i < threads; i++) {
    workers_.emplace_back([this, i] { work(i); });
    if (!cpus_.empty()) bind_to(workers_.back(), cpus_[i]);
  }
}

Pool::~Pool() {
  stop_ = true;
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void Pool::run(Job& job) {
  const std::lock_guard<std::mutex> turn(turn_);
  make_way();
  const int count = job.stages();
  if (count > capacity_) {
    capacity_ = 2 * count;
    arrays_.push_back(std::make_unique<Stage[]>(capacity_));
    stages_ = arrays_.back().get();
  }
  const uint64_t epoch = epoch_.load() + 1;
  Stage* stages = stages_;
  for (int i = 0; i < count; i++) {
    stages[i].size.store(epoch << 32 | static_cast<uint64_t>(job.tasks(i)), std::memory_order_relaxed);
    stages[i].done.store(epoch << 32, std::memory_order_relaxed);
    stages[i].next.store(epoch << 32, std::memory_order_release);
  }
  num_stages_ = count;
  job_ = &job;
  epoch_ = epoch;
  if (asleep_ > 0) epoch_.notify_all();
  help(epoch, 0);
}

/// The worker whose core the caller is on takes the caller's old one.
void Pool::make_way() {
#if defined(__linux__)
  if (cpus_.empty() || workers_.empty()) return;
  const int here = sched_getcpu();
  for (size_t i = 1; i <= workers_.size(); i++)
    if (cpus_[i] == here) {
      std::swap(cpus_[0], cpus_[i]);
      bind_to(workers_[i - 1], cpus_[i]);
      return;
    }
#endif
}

void Pool::help(uint64_t epoch, int thread) {
  Stage* stages = stages_;
  const int count = num_stages_;
  for (int s = 0; s < count; s++) {
    Stage& stage = stages[s];
    const uint64_t all = stage.size.load(std::memory_order_acquire);
    if (all >> 32 != epoch) return;
    for (uint64_t seen = stage.next.load(std::memory_order_acquire); seen < all;) {
      if (!stage.next.compare_exchange_weak(seen, seen + 1, std::memory_order_acq_rel)) continue;
      job_.load()->run(s, static_cast<int>(seen & 0xffffffffu), thread);
      stage.done.fetch_add(1, std::memory_order_acq_rel);
      seen = stage.next.load(std::memory_order_acquire);
    }
    wait_for([&] { return stage.done.load(std::memory_order_acquire) >= all; });
  }
}

void Pool::work(int thread) {
  uint64_t last = 0;
  while (true) {
    for (int i = 0; i < 4000 && epoch_.load() == last; i++) relax();  // the next step usually follows at once
    while (epoch_.load() == last) {
      asleep_.fetch_add(1);
      if (epoch_.load() == last) epoch_.wait(last);
      asleep_.fetch_sub(1);
    }
    if (stop_) return;
    last = epoch_.load();
    help(last, thread);
  }
}

}  // namespace tokenmill
