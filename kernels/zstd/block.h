#pragma once

// One compressed block (RFC 8878, 3.1.1.3), which goes on from what the blocks before it left.

#include "zstd/huffman.h"

namespace onnxcomp::zstd {

inline constexpr size_t kLargestBlock = size_t{1} << 17;

// What blocks of a frame share, and room to work in.
struct Workspace {
  HuffmanTable huffman;
  FseTable literal_lengths;
  FseTable offsets;
  FseTable match_lengths;
  FseTable scratch;
  uint32_t recent[3];  // offsets that sequences may repeat
  uint8_t literals[kLargestBlock];

  void reset() noexcept;  // as at the start of a frame
};

// Where a frame is unpacked to: matches copy what lies before `at`.
struct Output {
  uint8_t* data;
  size_t size;
  size_t at;
};

// Appends at most `largest` bytes.
Status decode_block(Bytes block, size_t largest, Workspace* work, Output* out) noexcept;

}  // namespace onnxcomp::zstd
