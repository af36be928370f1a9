#pragma once

#include <cstdint>
#include <vector>

#include "binary/kernels.h"

namespace onnxcomp::binary {

// A panel has words of 0 at padded positions, as though all their signs were -1; what the weights'
// bits there add has to go again. Once for each position of the kernel:
// 2 * (weights that are +1) - (channels), [positions, out_channels]. Empty without padding.
std::vector<int32_t> sum_positions(const ConvWeights& weights);

// The kinds of border pixels of one image size, and each kind's corrections.
class Borders {
 public:
  // `position_sums` are those of `weights`. Throws std::bad_alloc.
  Borders(const ConvWeights& weights, const std::vector<int32_t>& position_sums, int64_t height,
          int64_t width);

  bool any() const { return !values_.empty(); }
  // Class 0 is the interior, where nothing is padded.
  int32_t class_of(int64_t row, int64_t column) const {
    return table_[static_cast<size_t>(rows_.kinds[static_cast<size_t>(row)] * columns_.count() +
                                      columns_.kinds[static_cast<size_t>(column)])];
  }
  Corrections corrections() const { return {values_.data(), stride_}; }

 private:
  // Which of the kernel's positions along one axis lie inside, for each output along it.
  struct Axis {
    std::vector<Range> ranges;   // distinct ones
    std::vector<int64_t> kinds;  // [outputs], places in `ranges`
    int64_t count() const { return static_cast<int64_t>(ranges.size()); }
  };
  static Axis find_ranges(const Window& window, int axis, int64_t size);
  void fill(const ConvWeights& weights, const std::vector<int32_t>& position_sums);

  Axis rows_;
  Axis columns_;
  std::vector<int32_t> table_;   // [row ranges, column ranges] -> class
  std::vector<int32_t> values_;  // [out_channels, stride]
  int64_t stride_ = 0;
};

}  // namespace onnxcomp::binary
