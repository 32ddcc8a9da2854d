// Threads that share a list of stages. A stage is done when its tasks are, not when every thread has been there, so a
// thread that the machine has taken away holds nothing up unless it holds a task.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace tokenmill {

/// Work cut into stages, one after the other; the tasks of a stage may run at the same time.
struct Job {
  virtual ~Job() = default;
  virtual int stages() const = 0;
  virtual int tasks(int stage) const = 0;
  virtual void run(int stage, int task, int thread) = 0;
};

class Pool {
 public:
  /// `cpus`: a core for each thread, the caller's among them; fewer: wherever the system puts them. Only our own
  /// threads are bound, to the cores that the caller is not on: a library must not move its host's.
  Pool(int threads, std::vector<int> cpus);
  ~Pool();
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }
  /// Runs a job on the calling thread and the workers; returns when all of it is done. Callers take turns.
  void run(Job& job);

 private:
  // Each word carries the epoch (the number of the job) in its upper half. All of them only grow, so a worker that
  // comes late, from a job long over, finds no task with its epoch, touches nothing and leaves: nobody waits for it.
  struct alignas(64) Stage {
    std::atomic<uint64_t> size{0};  // tasks there are
    std::atomic<uint64_t> next{0};  // the next task to take
    std::atomic<uint64_t> done{0};  // tasks finished
  };
  void work(int thread);
  void make_way();
  void help(uint64_t epoch, int thread);

  std::mutex turn_;
  std::vector<std::unique_ptr<Stage[]>> arrays_;  // the last is in use; earlier ones live on for late workers
  std::atomic<Stage*> stages_{nullptr};
  int capacity_ = 0;
  std::atomic<int> num_stages_{0};
  std::atomic<Job*> job_{nullptr};
  std::vector<std::thread> workers_;
  std::vector<int> cpus_;
  alignas(64) std::atomic<uint64_t> epoch_{0};
  alignas(64) std::atomic<int> asleep_{0};
  std::atomic<bool> stop_{false};
};

/// A job of one stage: f(task, thread) for each task.
template <class F>
struct Tasks : Job {
  Tasks(int64_t count, F f) : count(count), f(std::move(f)) {}
  int stages() const override { return 1; }
  int tasks(int) const override { return static_cast<int>(count); }
  void run(int, int task, int thread) override { f(task, thread); }
  int64_t count;
  F f;
};
template <class F>
void parallel(Pool& pool, int64_t count, F f) {
  Tasks<F> job(count, std::move(f));
  pool.run(job);
}

}  // namespace tokenmill
