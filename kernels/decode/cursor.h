#pragma once

// Fields of the directory one after the other. The first one that is wrong sticks: what is read after it is
// zero, and `defect` names it.

#include "codec/geometry.h"

namespace onnxcomp::decode {

class Cursor {
 public:
  explicit Cursor(codec::Bytes bytes) noexcept : bytes_(bytes) {}

  // A varint of at most `largest`, no longer than needed.
  uint64_t number(uint64_t largest, const char* what) noexcept {
    uint64_t value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      const uint64_t byte = take_byte(what);
      if (defect != nullptr) return 0;
      if (shift == 63 && byte > 1) break;
      value |= (byte & 127) << shift;
      if (byte >= 128) continue;
      if (value > largest || (byte == 0 && shift > 0)) break;
      return value;
    }
    return wrong(what);
  }

  // Little-endian, of a fixed size.
  uint64_t fixed(int bytes, const char* what) noexcept {
    uint64_t value = 0;
    for (int i = 0; i < bytes; ++i) value |= static_cast<uint64_t>(take_byte(what)) << (8 * i);
    return value;
  }

  uint8_t take_byte(const char* what) noexcept {
    if (defect == nullptr && at_ < bytes_.size) return bytes_.data[at_++];
    wrong(what);
    return 0;
  }

  uint64_t wrong(const char* what) noexcept {
    if (defect == nullptr) defect = what;
    return 0;
  }

  size_t left() const noexcept { return bytes_.size - at_; }

  const char* defect = nullptr;

 private:
  codec::Bytes bytes_;
  size_t at_ = 0;
};

}  // namespace onnxcomp::decode
