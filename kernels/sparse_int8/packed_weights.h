#pragma once

#include <cstdint>
#include <string>

#include "entries/entry_lists.h"

namespace onnxcomp::sparse_int8 {

// Input channels that one entry covers: what a 32-bit lane holds of one pixel or token. Four
// neighbouring input channels at one position of the kernel are a quad.
inline constexpr int64_t kQuad = 4;

// A weight [out_channels, positions, in_channels] of int8 without most of its zeros, where
// in_channels are those that one output reads, and positions the taps of a convolution, row by row
// (1 for a matrix). The outputs of each group of a grouped convolution are cut into blocks of
// block_rows; each block lists the quads for which any of its weights is nonzero. Format version 1
// of docs/kernels.md. The arrays belong to somebody else (the model), and are used in place.
struct PackedWeights {
  const int8_t* values = nullptr;  // [entries, block_rows, kQuad]
  const int32_t* indices =
      nullptr;  // [entries], numbers of quads, strictly ascending within a block
  const int32_t* offsets =
      nullptr;  // [blocks + 1]: block b owns entries offsets[b] .. offsets[b + 1]
  int64_t out_channels = 0;
  int64_t in_channels = 0;
  int64_t positions = 1;
  int64_t groups = 1;
  int64_t block_rows = 1;  // 1 or 4

  int64_t quads_per_position() const;
  int64_t quad_count() const;
  int64_t group_outputs() const;
  int64_t group_blocks() const;
  int64_t block_count() const;
  int64_t entry_count() const;
};

inline constexpr int64_t kFormatVersion = 1;

// One line that says what is wrong and where, or an empty string. Kernels trust what passed here:
// every index is in range, every block lies inside the arrays.
std::string find_defect(const PackedWeights& weights, const PackedLengths& lengths);

}  // namespace onnxcomp::sparse_int8
