#pragma once

#include <cstdint>
#include <memory>

namespace onnxcomp {

// Memory that begins on a cache line and is used again: fresh pages cost more than filling them.
class Scratch {
 public:
  // At least so many bytes, of any content. Throws std::bad_alloc.
  uint8_t* reserve(int64_t bytes) {
    if (bytes > bytes_ || memory_ == nullptr) {
      memory_.reset();
      bytes_ = 0;
      auto space = static_cast<size_t>(bytes + kLine);
      memory_.reset(new uint8_t[space]);
      bytes_ = bytes;
      void* aligned = memory_.get();
      first_ = static_cast<uint8_t*>(std::align(kLine, static_cast<size_t>(bytes), aligned, space));
    }
    return first_;
  }

  int64_t bytes() const { return bytes_; }

 private:
  static constexpr int64_t kLine = 64;

  std::unique_ptr<uint8_t[]> memory_;
  uint8_t* first_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace onnxcomp
