#pragma once

// Memory under a cap, without exceptions.

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <type_traits>

namespace onnxcomp::decode {

// What a container may allocate.
struct Budget {
  uint64_t limit;
  uint64_t used = 0;
  bool refused = false;  // whether the limit, not the machine, was in the way

  bool take(uint64_t bytes) noexcept {
    refused = bytes > limit - used;
    if (!refused) used += bytes;
    return !refused;
  }
};

template <class T>
class Array {
  static_assert(std::is_trivially_copyable<T>::value, "moved by realloc");

 public:
  explicit Array(Budget* budget) noexcept : budget_(budget) {}
  ~Array() { clear(); }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  // What the elements were is lost. False when there is no memory.
  bool resize(uint64_t size) noexcept {
    if (size > capacity_) {
      clear();
      if (!reserve(size)) return false;
    }
    size_ = static_cast<size_t>(size);
    return true;
  }

  bool push(const T& value) noexcept {
    const T copy = value;
    if (size_ == capacity_ && !reserve(size_ < 8 ? 8 : size_ + size_ / 2)) return false;
    data_[size_++] = copy;
    return true;
  }

  T* data() noexcept { return data_; }
  const T* data() const noexcept { return data_; }
  size_t size() const noexcept { return size_; }
  T& operator[](size_t i) noexcept { return data_[i]; }
  const T& operator[](size_t i) const noexcept { return data_[i]; }

 private:
  void clear() noexcept {
    std::free(data_);
    budget_->used -= uint64_t{capacity_} * sizeof(T);
    data_ = nullptr;
    size_ = capacity_ = 0;
  }

  // Old and new elements exist side by side for a moment, and count both.
  bool reserve(uint64_t capacity) noexcept {
    if (capacity > SIZE_MAX / sizeof(T) || !budget_->take(capacity * sizeof(T))) return false;
    void* moved = std::realloc(data_, static_cast<size_t>(capacity) * sizeof(T));
    budget_->used -= (moved == nullptr ? capacity : uint64_t{capacity_}) * sizeof(T);
    if (moved == nullptr) return false;
    data_ = static_cast<T*>(moved);
    capacity_ = static_cast<size_t>(capacity);
    return true;
  }

  Budget* budget_;
  T* data_ = nullptr;
  size_t size_ = 0;
  size_t capacity_ = 0;
};

}  // namespace onnxcomp::decode
