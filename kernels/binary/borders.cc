#include "binary/borders.h"

#include <algorithm>

namespace onnxcomp::binary {
namespace {

// Smallest number of steps that reach `distance` or beyond.
int64_t steps_to(int64_t distance, int64_t step) {
  return distance <= 0 ? 0 : (distance + step - 1) / step;
}

}  // namespace

std::vector<int32_t> sum_positions(const ConvWeights& weights) {
  std::vector<int32_t> sums;
  if (!weights.window.padded()) return sums;
  const int64_t positions = weights.window.positions();
  const int64_t words = weights.words();
  sums.reserve(static_cast<size_t>(positions * weights.out_channels));
  for (int64_t position = 0; position < positions; ++position) {
    for (int64_t channel = 0; channel < weights.out_channels; ++channel) {
      const uint64_t* bits = weights.bits + (channel * positions + position) * words;
      int32_t ones = 0;
      for (int64_t word = 0; word < words; ++word) ones += count_ones(bits[word]);
      sums.push_back(2 * ones - static_cast<int32_t>(weights.group_channels()));
    }
  }
  return sums;
}

Borders::Axis Borders::find_ranges(const Window& window, int axis, int64_t size) {
  Axis found;
  const int64_t step = window.dilations[axis];
  const int64_t outputs = window.output_size(axis, size);
  for (int64_t output = 0; output < outputs; ++output) {
    const int64_t start = output * window.strides[axis] - window.pads[axis];
    const int64_t first = std::min(steps_to(-start, step), window.kernel[axis]);
    const int64_t last = std::clamp(steps_to(size - start, step), first, window.kernel[axis]);
    const auto same = [&](const Range& range) { return range.first == first && range.last == last; };
    const auto at = std::find_if(found.ranges.begin(), found.ranges.end(), same);
    found.kinds.push_back(at - found.ranges.begin());
    if (at == found.ranges.end()) found.ranges.push_back({first, last});
  }
  return found;
}

Borders::Borders(const ConvWeights& weights, const std::vector<int32_t>& position_sums,
                 int64_t height, int64_t width)
    : rows_(find_ranges(weights.window, 0, height)),
      columns_(find_ranges(weights.window, 1, width)) {
  const Window& window = weights.window;
  int32_t classes = 1;
  for (const Range& row : rows_.ranges) {
    for (const Range& column : columns_.ranges) {
      const bool inside = row.first == 0 && row.last == window.kernel[0] && column.first == 0 &&
                          column.last == window.kernel[1];
      table_.push_back(inside ? 0 : classes++);
    }
  }
  if (classes == 1) return;
  stride_ = (classes + kLookupClasses - 1) / kLookupClasses * kLookupClasses;
  fill(weights, position_sums);
}

void Borders::fill(const ConvWeights& weights, const std::vector<int32_t>& position_sums) {
  const Window& window = weights.window;
  const auto channels = static_cast<size_t>(weights.out_channels);
  const auto stride = static_cast<size_t>(stride_);
  values_.assign(channels * stride, 0);
  std::vector<int32_t> totals(channels);  // side by side: vectors add them up
  size_t kind = 0;
  for (const Range& row : rows_.ranges) {
    for (const Range& column : columns_.ranges) {
      const auto place = static_cast<size_t>(table_[kind++]);
      if (place == 0) continue;
      std::fill(totals.begin(), totals.end(), 0);
      for (int64_t y = 0; y < window.kernel[0]; ++y) {
        for (int64_t x = 0; x < window.kernel[1]; ++x) {
          if (row.first <= y && y < row.last && column.first <= x && x < column.last) continue;
          const int32_t* sums = position_sums.data() + static_cast<size_t>(y * window.kernel[1] + x) * channels;
          for (size_t channel = 0; channel < channels; ++channel) totals[channel] += sums[channel];
        }
      }
      for (size_t channel = 0; channel < channels; ++channel)
        values_[channel * stride + place] = totals[channel];
    }
  }
}

}  // namespace onnxcomp::binary
