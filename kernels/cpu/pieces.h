#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>

namespace onnxcomp {

// Work that tasks share, in pieces: a task does what it needs of it and nobody has begun. That takes
// no second fork and join of threads, and what a thread made is in its own cache when it reads it.
class Pieces {
 public:
  // Throws std::bad_alloc.
  explicit Pieces(int64_t count) : states_(new State[static_cast<size_t>(count)]) {}

  // Returns when pieces `first` to `last` (exclusive) are done, be it here, by perform(piece), which
  // never throws, or on other threads. Waits only for what another thread is performing, and a thread
  // performs no piece while it waits, so none waits for ever.
  template <class Perform>
  void need(int64_t first, int64_t last, const Perform& perform) const noexcept {
    bool others = false;
    for (int64_t piece = first; piece < last; ++piece) {
      std::atomic<int>& progress = states_[static_cast<size_t>(piece)].progress;
      int found = progress.load(std::memory_order_acquire);
      if (found == kNew && progress.compare_exchange_strong(found, kBegun)) {
        perform(piece);
        progress.store(kDone, std::memory_order_release);
      } else if (found != kDone) {
        others = true;
      }
    }
    for (int64_t piece = first; others && piece < last; ++piece) wait(piece);
  }

 private:
  enum Progress : int { kNew, kBegun, kDone };
  // Each on a cache line of its own: threads begin neighbouring pieces at the same time.
  struct alignas(64) State {
    std::atomic<int> progress{kNew};
  };

  void wait(int64_t piece) const noexcept {
    constexpr int kLooks = 1000;  // the other thread may have lost its processor
    const std::atomic<int>& progress = states_[static_cast<size_t>(piece)].progress;
    for (int look = 0; progress.load(std::memory_order_acquire) != kDone; ++look) {
      if (look >= kLooks) std::this_thread::yield();
    }
  }

  std::unique_ptr<State[]> states_;
};

}  // namespace onnxcomp
