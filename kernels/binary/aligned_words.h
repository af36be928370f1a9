#pragma once

#include <cstdint>
#include <memory>

#include "binary/kernels.h"

namespace onnxcomp::binary {

// Words that begin a cache line; their values are not set. Throws std::bad_alloc.
class AlignedWords {
 public:
  explicit AlignedWords(int64_t count) {
    size_t space = (static_cast<size_t>(count) + kLanes) * sizeof(uint64_t);
    memory_.reset(new uint64_t[static_cast<size_t>(count) + kLanes]);
    void* aligned = memory_.get();
    words_ = static_cast<uint64_t*>(std::align(kLanes * sizeof(uint64_t), static_cast<size_t>(count) * sizeof(uint64_t), aligned, space));
  }
  uint64_t* get() const { return words_; }

 private:
  std::unique_ptr<uint64_t[]> memory_;
  uint64_t* words_;
};

}  // namespace onnxcomp::binary
