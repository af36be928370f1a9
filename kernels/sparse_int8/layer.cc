#include "sparse_int8/layer.h"

#include <cmath>

namespace onnxcomp::sparse_int8 {

Layer::Layer(const PackedWeights& weights, const float* scale, const int32_t* bias,
             int32_t x_zero_point, int32_t y_zero_point)
    : weights_(weights),
      scale_(static_cast<size_t>(weights.block_count() * weights.block_rows), 0.0f),
      bias_(scale_.size(), 0),
      centred_bias_(scale_.size(), 0),
      x_zero_point_(static_cast<uint8_t>(x_zero_point)),
      y_zero_point_(y_zero_point) {
  const int64_t rows = weights.block_rows;
  for (int64_t block = 0; block < weights.block_count(); ++block) {
    const int64_t group = block / weights.group_blocks();
    const int64_t first = block % weights.group_blocks() * rows;
    for (int64_t row = 0; row < rows && first + row < weights.group_outputs(); ++row) {
      uint32_t total = 0;  // sums wrap around, as those they are taken from
      for (int64_t entry = weights.offsets[block]; entry < weights.offsets[block + 1]; ++entry) {
        const int8_t* quad = weights.values + (entry * rows + row) * kQuad;
        total += static_cast<uint32_t>(quad[0] + quad[1] + quad[2] + quad[3]);
      }
      const int64_t channel = group * weights.group_outputs() + first + row;
      const uint32_t given = bias == nullptr ? 0 : static_cast<uint32_t>(bias[channel]);
      const auto at = static_cast<size_t>(block * rows + row);
      const uint32_t shifted = given - total * static_cast<uint32_t>(x_zero_point);
      bias_[at] = static_cast<int32_t>(shifted);
      centred_bias_[at] = static_cast<int32_t>(shifted + total * 128);
      scale_[at] = scale[channel];
      bounded_ = bounded_ && scale[channel] < 1.0f;
    }
  }
}

std::string find_scale_defect(const float* scale, int64_t count) {
  for (int64_t channel = 0; channel < count; ++channel) {
    if (!(scale[channel] >= 0.0f) || std::isinf(scale[channel]))
      return "scale is " + std::to_string(scale[channel]) + " at position " +
             std::to_string(channel) + ", expected a finite number, 0 or more";
  }
  return {};
}

}  // namespace onnxcomp::sparse_int8
