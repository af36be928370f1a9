#pragma once

#include <cstdint>
#include <string>

#include "entries/entry_lists.h"

namespace onnxcomp::sparse {

// Columns computed together and written as one row: a block of the largest size, else eight.
inline constexpr int64_t kWideBlock = 16;
inline constexpr int64_t kTileColumns = 8;

// A weight [in_features, out_features] whose columns are cut into blocks of `block_size`; each block
// lists the inputs for which any of its columns is nonzero. Of a convolution, inputs are the channels
// that one output reads, at each tap of the kernel in turn, and every group of outputs is cut into
// blocks of its own. Format version 1 of docs/kernels.md.
// The arrays belong to somebody else (the model), and are used in place.
struct PackedWeights {
  const float* values = nullptr;     // [entries, block_size]
  const int32_t* indices = nullptr;  // [entries], strictly ascending within a block
  const int32_t* offsets = nullptr;  // [blocks + 1]: block b owns entries offsets[b] .. offsets[b + 1]
  int64_t in_features = 0;
  int64_t out_features = 0;
  int64_t block_size = 1;  // 1, 2, 4 or 16
  int64_t groups = 1;

  int64_t group_outputs() const;
  int64_t group_blocks() const;
  int64_t block_count() const;
  int64_t entry_count() const;
  int64_t tile_columns() const;
  int64_t tile_count() const;
};

inline constexpr int64_t kFormatVersion = 1;

// One line that says what is wrong and where, or an empty string. Kernels trust what passed here:
// every index is in range, every block lies inside the arrays.
std::string find_defect(const PackedWeights& weights, const PackedLengths& lengths);

}  // namespace onnxcomp::sparse
