#include "onnxruntime/scratch_pool.h"

#include <mutex>
#include <vector>

namespace onnxcomp::ort {
namespace {

constexpr int64_t kLargestKept = int64_t{1} << 24;

struct ScratchPool {
  std::mutex mutex;
  std::vector<Scratch> free;
};

// Like the domain it is never freed: sessions may outlive what static destructors leave.
ScratchPool& scratch_pool() {
  static ScratchPool* const pool = new ScratchPool;
  return *pool;
}

}  // namespace

BorrowedScratch::BorrowedScratch() {
  ScratchPool& pool = scratch_pool();
  const std::lock_guard<std::mutex> lock(pool.mutex);
  if (pool.free.empty()) return;
  scratch_ = std::move(pool.free.back());
  pool.free.pop_back();
}

BorrowedScratch::~BorrowedScratch() {
  if (scratch_.bytes() > kLargestKept) return;
  try {
    ScratchPool& pool = scratch_pool();
    const std::lock_guard<std::mutex> lock(pool.mutex);
    pool.free.push_back(std::move(scratch_));
  } catch (...) {  // no room for the list: the memory is freed
  }
}

}  // namespace onnxcomp::ort
