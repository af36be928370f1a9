#pragma once

#include <algorithm>
#include <cstdint>

#include "sparse_int8/kernels.h"

namespace onnxcomp::sparse_int8 {

// The outputs of a layer, cut into parts: each of them is a task for each tile of columns.
class OutputParts {
 public:
  OutputParts(const PackedWeights& weights, int64_t tiles)
      : blocks_(weights.block_count()),
        blocks_together_(kTileRows / weights.block_rows),
        steps_((blocks_ + blocks_together_ - 1) / blocks_together_),
        count_(std::clamp<int64_t>(kTasksWanted / std::max<int64_t>(tiles, 1), 1, steps_)) {}

  int64_t count() const { return count_; }

  // What a kernel computes together.
  int64_t blocks_together() const { return blocks_together_; }

  BlockRange blocks(int64_t part) const {
    return {steps_ * part / count_ * blocks_together_,
            std::min(steps_ * (part + 1) / count_ * blocks_together_, blocks_)};
  }

 private:
  // Enough tasks that a few threads share them evenly, few enough that starting one costs nothing.
  static constexpr int64_t kTasksWanted = 32;

  int64_t blocks_;
  int64_t blocks_together_;
  int64_t steps_;
  int64_t count_;
};

}  // namespace onnxcomp::sparse_int8
