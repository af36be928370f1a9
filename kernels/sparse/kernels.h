#pragma once

// No function is defined here and nothing of std is used: the per-instruction-set files include it.

#include <cstdint>

#include "sparse/packed_weights.h"

namespace onnxcomp::sparse {

// Tokens (rows of X) computed together. A panel is their transpose, [in_features, kPanelTokens]:
// the lanes of a vector register are tokens, so one weight serves all of them.
inline constexpr int64_t kPanelTokens = 16;

// Tiles, first to last (exclusive).
struct TileRange {
  int64_t first;
  int64_t last;
};

// Pixels of a convolution are computed kColumnLanes at a time, up to a tile.
inline constexpr int64_t kColumnLanes = 16;
inline constexpr int64_t kTileUnits = 8;
inline constexpr int64_t kTilePixels = kTileUnits * kColumnLanes;
inline constexpr int64_t kTileRows = 16;  // outputs

extern const float kLowest;  // less than any number

// The pixels of a tile: those that input i gives to it begin at x + places[i].
struct Columns {
  const float* x;
  const int64_t* places;  // [in_features]
  int64_t units;          // kColumnLanes pixels each; 1 to kTileUnits
  float low;              // what is less becomes this
};

// Blocks first to last (exclusive).
struct BlockRange {
  int64_t first;
  int64_t last;
};

// Single weights multiply up to kBroadColumns columns of tokens or pixels at once, and of those as many
// inputs as fit into the first cache of most processors, 32 KiB, for up to kSliceOutputs outputs.
inline constexpr int64_t kBroadUnits = 4;
inline constexpr int64_t kBroadColumns = kBroadUnits * kColumnLanes;
inline constexpr int64_t kSliceFloats = 8192;
inline constexpr int64_t kSliceOutputs = 128;

// One row per instruction set. Panels and rows: y = x W + bias for the columns of `tiles`; `y` points
// at column 0 of the first token and has out_features columns; `bias` may be null.
struct Kernel {
  const char* isa;
  // Of kPanelTokens or, where broad, of kBroadColumns; the latter for blocks of one output.
  void (*fill_panel)(const float* x, int64_t tokens, int64_t in_features, float* panel);
  void (*fill_broad_panel)(const float* x, int64_t tokens, int64_t in_features, float* panel);
  void (*multiply_panel)(const PackedWeights& weights, const float* bias, const float* panel,
                         int64_t tokens, TileRange tiles, float* y);
  void (*multiply_broad_panel)(const PackedWeights& weights, const float* bias, const float* panel,
                               int64_t tokens, TileRange tiles, float* y);
  void (*multiply_row)(const PackedWeights& weights, const float* bias, const float* x,
                       TileRange tiles, float* y);
  // y[outputs of the blocks, stride], of which kColumnLanes * units pixels are written; `bias` is
  // [blocks, block_size]. At most kTileRows outputs.
  void (*multiply_columns)(const PackedWeights& weights, const float* bias, const Columns& columns,
                           BlockRange blocks, float* y, int64_t stride);
  // The same of blocks of one output, for at most kSliceOutputs of them and kBroadUnits.
  void (*multiply_copied_columns)(const PackedWeights& weights, const float* bias,
                                  const Columns& columns, BlockRange blocks, float* y,
                                  int64_t stride);
};

// One per source file; CMakeLists.txt says which of them this target has.
extern const Kernel kPortable;
extern const Kernel kAvx2;
extern const Kernel kAvx512;
extern const Kernel kNeon;

}  // namespace onnxcomp::sparse
