#pragma once

#include <cstdint>
#include <string>

namespace onnxcomp::binary {

// A sign is one bit, 1 for +1; a word holds the signs of 64 channels, the first in the lowest bit.
inline constexpr int64_t kWordBits = 64;
// Words computed together, one vector register: pixels of a convolution, outputs of a Gemm.
inline constexpr int64_t kLanes = 8;

inline constexpr int64_t kFormatVersion = 1;

// Of internal linkage: each file has its own, compiled for the instructions that it may use.
static constexpr int64_t words_of(int64_t channels) {
  return (channels + kWordBits - 1) / kWordBits;
}

// Warren, Hacker's Delight, 5-1: pairs, nibbles and bytes are summed in place.
static constexpr int32_t count_ones(uint64_t x) {
  x -= (x >> 1) & 0x5555555555555555u;
  x = (x & 0x3333333333333333u) + ((x >> 2) & 0x3333333333333333u);
  x = (x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu;
  return static_cast<int32_t>((x * 0x0101010101010101u) >> 56);
}

// How a window slides over an image; vertical first, pads are top, left, bottom, right.
struct Window {
  int64_t kernel[2] = {1, 1};
  int64_t strides[2] = {1, 1};
  int64_t dilations[2] = {1, 1};
  int64_t pads[4] = {0, 0, 0, 0};

  int64_t positions() const { return kernel[0] * kernel[1]; }
  bool padded() const { return (pads[0] | pads[1] | pads[2] | pads[3]) != 0; }
  // Of the output, along `axis`; below 1 where the window is larger than the padded image.
  int64_t output_size(int axis, int64_t size) const;
};

// Signs of a weight [out_channels, in_channels / group, kernel], format version 1 of docs/kernels.md.
// The bits belong to somebody else (the model), and are used in place; so below.
struct ConvWeights {
  const uint64_t* bits = nullptr;  // [out_channels, positions, words]
  int64_t out_channels = 0;
  int64_t in_channels = 0;
  int64_t group = 1;
  Window window;

  int64_t group_channels() const { return in_channels / group; }
  int64_t words() const { return words_of(group_channels()); }
  int64_t row_words() const { return words() * window.positions(); }
  int64_t signs() const { return group_channels() * window.positions(); }
};

// Signs of a weight [in_channels * positions, out_features].
struct GemmWeights {
  const uint64_t* bits = nullptr;  // [blocks, row_words, kLanes]
  int64_t in_channels = 0;
  int64_t positions = 1;
  int64_t out_features = 0;

  int64_t blocks() const { return (out_features + kLanes - 1) / kLanes; }
  int64_t row_words() const { return words_of(in_channels) * positions; }
  int64_t signs() const { return in_channels * positions; }
};

// One line that says what is wrong and where, or an empty string. `length` is that of the bits as
// the model declares it. Kernels trust what passed here.
std::string find_defect(const Window& window);
std::string find_defect(const ConvWeights& weights, int64_t length);
std::string find_defect(const GemmWeights& weights, int64_t length);
// Whether what passed the second of these can be computed to bits.
std::string find_bits_defect(const ConvWeights& weights);

}  // namespace onnxcomp::binary
