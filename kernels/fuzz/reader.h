#pragma once

#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <vector>

#include "fuzz/target.h"

namespace onnxcomp::fuzz {

// Memory of exactly so many numbers, behind which nothing may be read or written. Bytes begin at an
// odd address, numbers at a multiple of their size, as the arrays of a model do.
template <class T>
class Exact {
 public:
  explicit Exact(int64_t count)
      : count_(count), memory_(new uint8_t[static_cast<size_t>(bytes()) + kShift]) {
    std::memset(memory_.get(), 0xa5, static_cast<size_t>(bytes()) + kShift);
  }

  int64_t count() const { return count_; }
  int64_t bytes() const { return count_ * static_cast<int64_t>(sizeof(T)); }
  T* data() const { return reinterpret_cast<T*>(memory_.get() + kShift); }

 private:
  static constexpr size_t kShift = sizeof(T) == 1 ? 1 : 0;

  int64_t count_;
  std::unique_ptr<uint8_t[]> memory_;
};

// What a target makes of its input.
class Reader {
 public:
  Reader(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  // A byte; 0 where there are no more.
  uint8_t byte() { return at_ < size_ ? data_[at_++] : uint8_t{0}; }

  // A number as a model may state it: of one byte, the largest of which stand for those that hurt.
  int64_t number() {
    constexpr int64_t kHostile[] = {-1,        INT64_MIN, INT64_MAX, int64_t{1} << 31,
                                    INT32_MAX, int64_t{1} << 33};
    constexpr int kFirst = 250;
    const uint8_t code = byte();
    return code < kFirst ? code : kHostile[code - kFirst];
  }

  // A length: two bytes.
  int64_t length() {
    const int64_t low = byte();
    return low | int64_t{byte()} << 8;
  }

  // So many numbers. Where the input ends, it goes on with what follows the first call of this.
  template <class T>
  Exact<T> array(int64_t count) {
    if (first_ == 0) first_ = at_;
    Exact<T> numbers(count);
    auto* to = reinterpret_cast<uint8_t*>(numbers.data());
    for (int64_t i = 0; i < numbers.bytes(); ++i) {
      if (at_ == size_) at_ = first_;
      to[i] = byte();
    }
    return numbers;
  }

 private:
  const uint8_t* data_;
  size_t size_;
  size_t at_ = 0;
  size_t first_ = 0;
};

// Whether an array of such a shape takes milliseconds to compute; sizes may be anything.
inline bool is_small(std::initializer_list<int64_t> shape) {
  double count = 1;
  for (const int64_t size : shape) count *= static_cast<double>(size);
  return count <= 1 << 17;
}

template <class T>
void expect_equal(const Exact<T>& expected, const Exact<T>& found, const char* isa) {
  for (int64_t i = 0; i < expected.count(); ++i) {
    const T right = expected.data()[i], wrong = found.data()[i];
    if (std::memcmp(&right, &wrong, sizeof right) == 0) continue;
    std::fprintf(stderr, "number %lld of %lld is %.9g, expected %.9g\n", static_cast<long long>(i),
                 static_cast<long long>(expected.count()), static_cast<double>(wrong), static_cast<double>(right));
    expect(false, isa);
  }
}

// Calls compute(kernel, y) for each kernel, the last of which is the portable one: all have to give
// the same numbers, all of which have to be written.
template <class T, class Kernel, class Compute>
void compare_kernels(const std::vector<const Kernel*>& kernels, int64_t count,
                     const Compute& compute) {
  const Exact<T> expected(count);
  compute(*kernels.back(), expected.data());
  record(kernels.back()->isa, expected.data(), static_cast<size_t>(expected.bytes()));
  for (const Kernel* kernel : kernels) {
    if (kernel == kernels.back()) continue;
    const Exact<T> found(count);
    std::memset(found.data(), 0x5a, static_cast<size_t>(found.bytes()));
    compute(*kernel, found.data());
    record(kernel->isa, found.data(), static_cast<size_t>(found.bytes()));
    expect_equal(expected, found, kernel->isa);
  }
}

}  // namespace onnxcomp::fuzz
