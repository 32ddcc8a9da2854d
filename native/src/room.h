// Memory that a thread keeps between calls while it is moderate: fresh memory would cost page faults in every call.
#pragma once

#include <cstdint>
#include <memory>
#include <new>

namespace tokenmill {

class Room {
 public:
  /// So many numbers, on a cache line's beginning; what was in them is lost.
  template <class T>
  T* of(int64_t count) {
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    if (bytes > bytes_) {
      memory_.reset(new (line) std::byte[bytes]);
      bytes_ = bytes;
    }
    return reinterpret_cast<T*>(memory_.get());
  }
  void let_go() {
    if (bytes_ > most) memory_.reset(), bytes_ = 0;
  }

 private:
  static constexpr std::align_val_t line{64};
  static constexpr int64_t most = 1 << 23;
  struct Free {
    void operator()(std::byte* p) const { operator delete[](p, line); }
  };
  std::unique_ptr<std::byte[], Free> memory_;
  int64_t bytes_ = 0;
};

}  // namespace tokenmill
