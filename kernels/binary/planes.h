#pragma once

#include <cstdint>

#include "binary/kernels.h"

namespace onnxcomp::binary {

// What goes from floats to bits and from bits to bits, in planes (a word's channels of one image), in
// any order and on any threads.

// x [batch, channels, positions] -> bits [batch, words, positions]
class Packing {
 public:
  // `first.x` is that of the first image.
  Packing(const Kernel& kernel, const PackInput& first, int64_t batch, uint64_t* bits);

  int64_t task_count() const { return (planes_ + together_ - 1) / together_ * parts_; }
  void run(int64_t task) const noexcept;
  int64_t work() const { return batch_ * first_.channels * first_.positions; }  // floats

 private:
  const Kernel& kernel_;
  PackInput first_;
  int64_t batch_;
  uint64_t* bits_;
  int64_t planes_;
  int64_t together_;  // planes of a task: one alone may be a single word
  int64_t parts_;     // of a plane: there may be only one of them
};

// The maximum of signs: bits [planes, height, width] -> [planes, height', width'], the or of those in
// the window, which may have no dilations. Padding adds nothing.
class MaxPool {
 public:
  MaxPool(const Window& window, const uint64_t* x, int64_t planes, int64_t height, int64_t width,
          uint64_t* y)
      : window_(window), x_(x), planes_(planes), height_(height), width_(width), y_(y) {}

  int64_t task_count() const { return planes_; }
  void run(int64_t task) const noexcept;
  int64_t work() const { return planes_ * height_ * width_; }  // words

 private:
  Window window_;
  const uint64_t* x_;
  int64_t planes_;
  int64_t height_;
  int64_t width_;
  uint64_t* y_;
};

}  // namespace onnxcomp::binary
