#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace onnxcomp {

// Where scratch memory comes from.
class Memory {
 public:
  // Throws std::bad_alloc, or what says more.
  virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* memory) noexcept = 0;

 protected:
  ~Memory() = default;
};

// Memory of one product that begins on a cache line, released with it.
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(Memory& memory) : memory_(&memory) {}
  ~Scratch() { release(); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // At least so many bytes, of any content, in place of those before. Throws what `Memory` throws.
  uint8_t* reserve(int64_t bytes) {
    release();
    auto space = static_cast<size_t>(bytes) + kLine;
    block_ = memory_ == nullptr ? ::operator new(space) : memory_->allocate(space);
    void* aligned = block_;
    return static_cast<uint8_t*>(std::align(kLine, static_cast<size_t>(bytes), aligned, space));
  }

 private:
  static constexpr size_t kLine = 64;

  void release() noexcept {
    if (block_ == nullptr) return;
    memory_ == nullptr ? ::operator delete(block_) : memory_->release(block_);
    block_ = nullptr;
  }

  Memory* memory_ = nullptr;  // the heap
  void* block_ = nullptr;
};

}  // namespace onnxcomp
