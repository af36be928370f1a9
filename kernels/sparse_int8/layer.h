#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sparse_int8/kernels.h"

namespace onnxcomp::sparse_int8 {

// A layer as it is applied: weights in place, and what a row of a block needs after its sum.
class Layer {
 public:
  // `scale` has one number a channel and `bias`, which may be null, one int32 in units of
  // x_scale * weight_scale. The weights have no defect, the zero points are 0 to 255.
  Layer(const PackedWeights& weights, const float* scale, const int32_t* bias, int32_t x_zero_point,
        int32_t y_zero_point);

  const PackedWeights& weights() const { return weights_; }
  uint8_t x_zero_point() const { return x_zero_point_; }
  Scaling scaling() const {
    return {bias_.data(), centred_bias_.data(), scale_.data(), y_zero_point_, bounded_};
  }

 private:
  PackedWeights weights_;
  std::vector<float> scale_;
  std::vector<int32_t> bias_;
  std::vector<int32_t> centred_bias_;
  uint8_t x_zero_point_;
  int32_t y_zero_point_;
  bool bounded_ = true;
};

// One line that says which scale is not a finite number of at least 0, or an empty string.
std::string find_scale_defect(const float* scale, int64_t count);

}  // namespace onnxcomp::sparse_int8
