#pragma once

// No function is defined here and nothing of std is used: the per-instruction-set files include it.

#include <cstdint>

#include "sparse/packed_weights.h"

namespace onnxcomp::sparse {

// Tokens (rows of X) computed together. A panel is their transpose, [in_features, kPanelTokens]:
// the lanes of a vector register are tokens, so one weight serves all of them.
inline constexpr int64_t kPanelTokens = 16;

// Tiles of kTileColumns columns, first to last (exclusive).
struct TileRange {
  int64_t first;
  int64_t last;
};

// One row per instruction set. All compute y = x W + bias for the columns of `tiles`; `y` points at
// column 0 of the first token and has out_features columns; `bias` may be null.
struct Kernel {
  const char* isa;
  void (*fill_panel)(const float* x, int64_t tokens, int64_t in_features, float* panel);
  void (*multiply_panel)(const PackedWeights& weights, const float* bias, const float* panel,
                         int64_t tokens, TileRange tiles, float* y);
  void (*multiply_row)(const PackedWeights& weights, const float* bias, const float* x,
                       TileRange tiles, float* y);
};

// One per source file; CMakeLists.txt says which of them this target has.
extern const Kernel kPortable;
extern const Kernel kAvx2;
extern const Kernel kNeon;

}  // namespace onnxcomp::sparse
