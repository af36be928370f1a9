#pragma once

// No function is defined here and nothing of std is used: the per-instruction-set files include it.

#include <cstdint>

#include "sparse_int8/packed_weights.h"

namespace onnxcomp::sparse_int8 {

// W [outputs, inputs] times X [inputs, columns], where columns are the pixels of an image or the
// tokens of a matrix. A lane is one column of one quad; kLanes columns make a vector.
inline constexpr int64_t kLanes = 16;
inline constexpr int64_t kTileVectors = 8;
inline constexpr int64_t kTileColumns = kTileVectors * kLanes;
inline constexpr int64_t kTileRows = 16;  // outputs
// Columns of codes that are transposed together.
inline constexpr int64_t kTransposedColumns = 64;

// What becomes of a sum, for each row of each block: float32(sum + bias) * scale, then for codes
// rounded to even, plus zero_point, clamped to 0 .. 255.
struct Scaling {
  const int32_t* bias;  // [blocks, block_rows], less zero_point of x times the row's weights
  const int32_t* centred_bias;  // the same where x - 128 is multiplied
  const float* scale;           // [blocks, block_rows]
  int32_t zero_point;
  bool bounded;  // every scale is below 1, so no scaled sum reaches 2^31
};

// The columns of a tile. Quad q begins at x + places[q], four bytes a column; kLanes * vectors
// columns of every quad can be read.
struct Columns {
  const uint8_t* x;
  const int64_t* places;  // [quads]
  int64_t spacing;        // of the places, bytes; 0 where they are not evenly spaced from 0 on
  int64_t vectors;        // 1 to kTileVectors
};

// Blocks first to last (exclusive), at most kTileRows rows.
struct BlockRange {
  int64_t first;
  int64_t last;
};

// Four neighbouring channels of an image.
struct Planes {
  const uint8_t* channels[kQuad];
};

// Pixels of each plane, and where they go: `rows` rows of `pixels`, which begin `stride` pixels apart
// from `first` on, and `to_stride` apart in the copy.
struct Patch {
  int64_t first;
  int64_t pixels;
  int64_t rows;
  int64_t stride;
  int64_t to_stride;
};

// One row per instruction set; all give the same bits. Sums are exact modulo 2^32.
struct Kernel {
  const char* isa;
  // -> codes[rows, stride], of which kLanes * vectors columns are written
  void (*multiply)(const PackedWeights& weights, const Scaling& scaling, const Columns& columns,
                   BlockRange blocks, uint8_t* codes, int64_t stride);
  void (*multiply_to_float)(const PackedWeights& weights, const Scaling& scaling,
                            const Columns& columns, BlockRange blocks, float* results,
                            int64_t stride);
  // 16 rows of 64 bytes -> 64 rows of 16
  void (*transpose_bytes)(const uint8_t* from, int64_t from_stride, uint8_t* to, int64_t to_stride);
  // 16 rows of 16 words of four bytes; strides in bytes
  void (*transpose_words)(const uint8_t* from, int64_t from_stride, uint8_t* to, int64_t to_stride);
  // to[row * to_stride + i] = channels 0 to 3 at first + row * stride + i
  void (*interleave)(const Planes& planes, const Patch& patch, uint8_t* to);
};

// One per source file; CMakeLists.txt says which of them this target has.
extern const Kernel kPortable;
extern const Kernel kAvx2;
extern const Kernel kAvx512;
extern const Kernel kNeon;
extern const Kernel kNeonDotProd;
extern const Kernel kNeonI8mm;

}  // namespace onnxcomp::sparse_int8
