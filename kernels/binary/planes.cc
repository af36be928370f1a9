#include "binary/planes.h"

#include <algorithm>

namespace onnxcomp::binary {

void Packing::run(int64_t task) const noexcept {
  const int64_t words = words_of(first_.channels);
  PackInput image = first_;
  image.x += task / words * first_.channels * first_.positions;
  kernel_.pack(image, task % words, bits_ + task * first_.positions);
}

void MaxPool::run(int64_t task) const noexcept {
  const uint64_t* x = x_ + task * height_ * width_;
  const int64_t out_height = window_.output_size(0, height_);
  const int64_t out_width = window_.output_size(1, width_);
  uint64_t* y = y_ + task * out_height * out_width;
  for (int64_t row = 0; row < out_height; ++row) {
    const int64_t top = row * window_.strides[0] - window_.pads[0];
    const int64_t bottom = std::min(top + window_.kernel[0], height_);
    for (int64_t column = 0; column < out_width; ++column) {
      const int64_t left = column * window_.strides[1] - window_.pads[1];
      const int64_t right = std::min(left + window_.kernel[1], width_);
      uint64_t bits = 0;
      for (int64_t i = std::max<int64_t>(top, 0); i < bottom; ++i) {
        for (int64_t j = std::max<int64_t>(left, 0); j < right; ++j) bits |= x[i * width_ + j];
      }
      *y++ = bits;
    }
  }
}

}  // namespace onnxcomp::binary
