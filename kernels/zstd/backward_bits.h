#pragma once

// Bit streams that are read from their end (RFC 8878, 4.1): the highest bit set of the last byte ends
// the stream, and numbers have their highest bit first.

#include <cstddef>
#include <cstdint>

#include "codec/geometry.h"

namespace onnxcomp::zstd {

using codec::Bytes;

// Position of the highest bit set; -1 of zero.
inline int highest_bit(uint32_t value) noexcept {
  int position = -1;
  for (; value != 0; value >>= 1) ++position;
  return position;
}

class BackwardBits {
 public:
  // False when there is no end mark.
  bool open(Bytes bytes) noexcept {
    if (bytes.size == 0 || bytes.data[bytes.size - 1] == 0) return false;
    bytes_ = bytes;
    left_ = static_cast<int64_t>(bytes.size - 1) * 8 + highest_bit(bytes.data[bytes.size - 1]);
    return true;
  }

  // The next `width` <= 32 bits, zeros where the stream has ended.
  uint32_t peek(int width) const noexcept {
    if (left_ >= width) return extract(left_ - width, width);
    if (left_ <= 0) return 0;
    return extract(0, static_cast<int>(left_)) << (width - left_);
  }

  void skip(int width) noexcept { left_ -= width; }

  uint32_t read(int width) noexcept {
    const uint32_t value = peek(width);
    skip(width);
    return value;
  }

  // Bits not read yet; negative when more was read than there is.
  int64_t left() const noexcept { return left_; }

 private:
  uint32_t extract(int64_t first, int width) const noexcept {
    const auto byte = static_cast<size_t>(first >> 3);
    const size_t there = bytes_.size - byte;
    uint64_t word = 0;
    if (there >= 8) {
      for (size_t i = 0; i < 8; ++i) word |= static_cast<uint64_t>(bytes_.data[byte + i]) << (8 * i);
    } else {
      for (size_t i = 0; i < there; ++i) word |= static_cast<uint64_t>(bytes_.data[byte + i]) << (8 * i);
    }
    return static_cast<uint32_t>(word >> (first & 7) & ((uint64_t{1} << width) - 1));
  }

  Bytes bytes_ = {nullptr, 0};
  int64_t left_ = 0;
};

}  // namespace onnxcomp::zstd
