#pragma once

// Bit streams: bit i of the stream is bit i % 8 of byte i / 8, numbers have their lowest bit first.

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "codec/geometry.h"

namespace onnxcomp::codec {

class BitWriter {
 public:
  void write(uint32_t value, int width) {
    pending_ |= static_cast<uint64_t>(value) << held_;
    held_ += width;
    while (held_ >= 8) {
      bytes_.push_back(static_cast<uint8_t>(pending_));
      pending_ >>= 8;
      held_ -= 8;
    }
  }

  // Exp-Golomb code of order k: with v = value + 2^k of b + 1 bits: b - k ones, a zero, the low b bits.
  void write_golomb(uint64_t value, int order) {
    const uint64_t raised = value + (uint64_t{1} << order);
    int top = order;
    while ((raised >> top) > 1) {
      write(1, 1);
      ++top;
    }
    write(0, 1);
    if (top > 32) write(static_cast<uint32_t>(raised), 32);
    const int done = top > 32 ? 32 : 0;
    const uint64_t mask = (uint64_t{1} << (top - done)) - 1;
    write(static_cast<uint32_t>((raised >> done) & mask), top - done);
  }

  // 0, -1, 1, -2, 2 ... become 0, 1, 2, 3, 4 ...
  void write_signed_golomb(int64_t value, int order) {
    write_golomb(value < 0 ? ~static_cast<uint64_t>(value) * 2 + 1 : static_cast<uint64_t>(value) * 2, order);
  }

  // Moves all bits of `other` behind these.
  void append(BitWriter* other) {
    for (const uint8_t byte : other->bytes_) write(byte, 8);
    write(static_cast<uint32_t>(other->pending_), other->held_);
    *other = {};
  }

  size_t bit_count() const noexcept { return bytes_.size() * 8 + static_cast<size_t>(held_); }

  // The bytes so far; zeros fill the last one.
  std::vector<uint8_t> take() {
    if (held_ > 0) bytes_.push_back(static_cast<uint8_t>(pending_));
    pending_ = 0;
    held_ = 0;
    return std::move(bytes_);
  }

 private:
  std::vector<uint8_t> bytes_;
  uint64_t pending_ = 0;
  int held_ = 0;
};

inline int golomb_length(uint64_t value, int order) noexcept {
  const uint64_t raised = value + (uint64_t{1} << order);
  int top = order;
  while ((raised >> top) > 1) ++top;
  return 2 * top - order + 1;
}

// Reads zeros behind the end and remembers that it did.
class BitReader {
 public:
  explicit BitReader(Bytes bytes) : bytes_(bytes) {}

  uint32_t read(int width) noexcept {
    while (held_ < width) {
      const bool inside = next_ < bytes_.size;
      overrun_ |= !inside;
      pending_ |= static_cast<uint64_t>(inside ? bytes_.data[next_] : 0) << held_;
      next_ += inside;
      held_ += 8;
    }
    const uint32_t value = static_cast<uint32_t>(pending_ & ((uint64_t{1} << width) - 1));
    pending_ >>= width;
    held_ -= width;
    return value;
  }

  uint64_t read_golomb(int order) noexcept {
    int top = order;
    while (top < kLongestGolomb && read(1) == 1) ++top;
    if (top == kLongestGolomb) overrun_ = true;
    const int low = top > 32 ? 32 : top;
    uint64_t value = read(low);
    value |= static_cast<uint64_t>(read(top - low)) << low;
    return value + (uint64_t{1} << top) - (uint64_t{1} << order);
  }

  int64_t read_signed_golomb(int order) noexcept {
    const uint64_t folded = read_golomb(order);
    return static_cast<int64_t>(folded >> 1) ^ -static_cast<int64_t>(folded & 1);
  }

  // Whether more was read than there is, or a number had more than 40 bits.
  bool overrun() const noexcept { return overrun_; }

  // Bytes touched so far; the unread bits of the last of them must be zeros.
  size_t position() const noexcept { return next_; }
  bool padding_is_zero() const noexcept { return pending_ == 0; }

 private:
  static constexpr int kLongestGolomb = 40;
  Bytes bytes_;
  size_t next_ = 0;
  uint64_t pending_ = 0;
  int held_ = 0;
  bool overrun_ = false;
};

}  // namespace onnxcomp::codec
