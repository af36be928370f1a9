#pragma once

// No function is defined here and nothing of std is used: the per-instruction-set files include it.

#include <cstdint>

#include "binary/packed_weights.h"

namespace onnxcomp::binary {

// A tile: so many rows, whose words are broadcast, times so many blocks of kLanes words.
inline constexpr int64_t kTileRows = 4;
inline constexpr int64_t kTileBlocks = 4;
inline constexpr int64_t kTileLanes = kTileBlocks * kLanes;

// Kinds of border pixels that a vector looks up; more take a loop.
inline constexpr int64_t kLookupClasses = 16;

// First to last (exclusive).
struct Range {
  int64_t first;
  int64_t last;
};

// `count` lanes of a panel, from `lane` on, whose results lie side by side in the output.
struct Run {
  int64_t lane;
  int64_t count;
  int64_t output;  // element of the first, in channel (or word) 0
};

// Input of up to kTileLanes pixels: [kTileBlocks, row_words, kLanes]. Words past `lanes` may be anything.
struct Panel {
  uint64_t* words;
  int64_t lanes;
  int64_t run_count;
  bool at_border;
  int32_t classes[kTileLanes];  // row of Corrections, which kind of border a pixel is at
  Run runs[kTileLanes];
};

// What padding adds to 2 * (bits that differ), [channels, stride]; null where there is none.
struct Corrections {
  const int32_t* values = nullptr;
  int64_t stride = 0;  // classes, rounded up to a multiple of kLookupClasses
};

// One convolution: rows are output channels. The sums are signs - 2 * (bits that differ) + correction.
struct ConvRows {
  const uint64_t* bits;  // [channels, row_words]
  int64_t row_words;
  int32_t signs;
  Corrections corrections;
  int64_t channel_stride;  // of the output, between channels (or words of them)
};

// One Gemm: rows are those of the input, lanes are outputs.
struct GemmRows {
  const uint64_t* x;  // [rows, row_words]
  int64_t rows;
};

// Either scale or bias may be null: float32(sum) * scale + bias, rounded after each step.
struct FloatOutput {
  float* y;
  const float* scale;
  const float* bias;
};

// Bits of sum >= threshold.
struct BitOutput {
  uint64_t* y;
  const int32_t* thresholds;
};

enum class Comparison : int { kGreater, kGreaterOrEqual, kLess, kLessOrEqual };

// x [channels, positions] of one image, channels `channel_range`, at most 64 of them.
struct PackInput {
  const float* x;
  int64_t channels;
  int64_t positions;
  const float* thresholds;  // [channels] if per_channel, else one; never null
  bool per_channel;
  Comparison comparison;
};

// One row per instruction set. Channels and outputs of bits begin at a multiple of 64.
struct Kernel {
  const char* isa;
  void (*conv_floats)(const ConvRows& conv, const Panel& panel, Range channels, const FloatOutput& out);
  void (*conv_bits)(const ConvRows& conv, const Panel& panel, Range channels, const BitOutput& out);
  void (*gemm_floats)(const GemmWeights& weights, const GemmRows& rows, Range outputs,
                      const FloatOutput& out);
  void (*gemm_bits)(const GemmWeights& weights, const GemmRows& rows, Range outputs,
                    const BitOutput& out);
  // The words of channels 64 * word to 64 * word + 63, at some of the positions: bits[input.positions].
  void (*pack)(const PackInput& input, int64_t word, Range positions, uint64_t* bits);
};

// One per source file; CMakeLists.txt says which of them this target has.
extern const Kernel kPortable;
extern const Kernel kAvx2;
extern const Kernel kAvx512;
extern const Kernel kNeon;

}  // namespace onnxcomp::binary
