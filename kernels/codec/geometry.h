#pragma once

#include <cstddef>
#include <cstdint>

namespace onnxcomp::codec {

// A chunk holds at most this many codes.
inline constexpr int64_t kMaxCodes = int64_t{1} << 20;

// The shape of a chunk of codes, in C order: rows are output channels, columns input channels,
// kernel the positions of one kernel (9 for 3x3). A vector is [1, n, 1].
struct Geometry {
  int64_t rows;
  int64_t columns;
  int64_t kernel;

  int64_t row_length() const noexcept { return columns * kernel; }
  int64_t count() const noexcept { return rows * columns * kernel; }

  // Division, not multiplication: the factors come from a file.
  bool valid() const noexcept {
    if (rows < 0 || columns < 0 || kernel < 0) return false;
    if (rows == 0 || columns == 0 || kernel == 0) return rows <= kMaxCodes && columns <= kMaxCodes && kernel <= kMaxCodes;
    return rows <= kMaxCodes && columns <= kMaxCodes / rows && kernel <= kMaxCodes / (rows * columns);
  }
};

// Bytes that somebody else owns.
struct Bytes {
  const uint8_t* data;
  size_t size;
};

}  // namespace onnxcomp::codec
