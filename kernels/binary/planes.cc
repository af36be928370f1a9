#include "binary/planes.h"

#include <algorithm>

namespace onnxcomp::binary {

namespace {

// Positions of a task: fewer take less time than starting it.
constexpr int64_t kPositionsTogether = 64;
// Enough that a few threads share them, where there are few planes.
constexpr int64_t kTasksWanted = 8;

int64_t quotient_up(int64_t number, int64_t divisor) { return (number + divisor - 1) / divisor; }

}  // namespace

Packing::Packing(const Kernel& kernel, const PackInput& first, int64_t batch, uint64_t* bits)
    : kernel_(kernel),
      first_(first),
      batch_(batch),
      bits_(bits),
      planes_(batch * words_of(first.channels)),
      together_(quotient_up(kPositionsTogether, std::max<int64_t>(first.positions, 1))),
      parts_(std::clamp<int64_t>(kTasksWanted / std::max<int64_t>(planes_, 1), 1,
                                 first.positions / kPositionsTogether + 1)) {}

void Packing::run(int64_t task) const noexcept {
  const int64_t words = words_of(first_.channels);
  const int64_t part = task % parts_, first_plane = task / parts_ * together_;
  const int64_t blocks = quotient_up(first_.positions, kPositionsTogether);
  const Range positions{
      blocks * part / parts_ * kPositionsTogether,
      std::min(blocks * (part + 1) / parts_ * kPositionsTogether, first_.positions)};
  PackInput image = first_;
  int64_t word = first_plane % words;
  image.x += first_plane / words * first_.channels * first_.positions;
  for (int64_t plane = first_plane; plane < std::min(first_plane + together_, planes_); ++plane) {
    kernel_.pack(image, word, positions, bits_ + plane * first_.positions);
    if (++word < words) continue;
    word = 0;
    image.x += first_.channels * first_.positions;
  }
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
