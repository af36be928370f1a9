#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "binary/aligned_words.h"
#include "binary/borders.h"
#include "binary/kernels.h"
#include "cpu/pieces.h"

namespace onnxcomp::binary {

// bits [batch, words, height, width]
struct ConvInput {
  const uint64_t* bits;
  int64_t batch;
  int64_t height;
  int64_t width;
};

// A binary convolution cut into independent tasks, run in any order and on any threads; the result
// does not depend on them. Tasks never throw. The output is [batch, channels or words of them,
// height, width], the last two as Window::output_size says; neither may be 0.
class Conv {
 public:
  // Everything is used in place. Throws std::bad_alloc.
  Conv(const Kernel& kernel, const ConvWeights& weights, const std::vector<int32_t>& position_sums,
       const ConvInput& input, bool to_bits);

  int64_t task_count() const { return strips_ * weights_.group * parts_; }
  void run(int64_t task, const FloatOutput& out) const noexcept;
  void run(int64_t task, const BitOutput& out) const noexcept;

  // Words compared: whether threads are worth waking.
  int64_t work() const { return pixels_ * weights_.out_channels * weights_.row_words(); }

 private:
  struct Pixel {  // of the output
    int64_t image;
    int64_t row;
    int64_t column;
  };
  struct Task {
    Range panels;
    int64_t group;
    Range channels;
    int64_t strip;  // and group
  };
  template <class Output>
  void run_task(int64_t task, const Output& out,
                void (*multiply)(const ConvRows&, const Panel&, Range, const Output&)) const noexcept;
  Task task_at(int64_t task) const;
  void fill(int64_t index, int64_t group, Panel& panel) const noexcept;
  void fill_block(const Pixel* pixels, const uint64_t* bits, uint64_t* to) const noexcept;
  void place(int64_t index, Pixel (&pixels)[kTileLanes], Panel& panel) const noexcept;
  ConvRows rows() const;

  const Kernel& kernel_;
  const ConvWeights& weights_;
  ConvInput input_;
  Borders borders_;
  bool to_bits_;
  int64_t out_height_;
  int64_t out_width_;
  int64_t pixels_;  // of all images' outputs
  int64_t panels_;
  int64_t strips_;  // of panels
  int64_t parts_;   // of a group's channels
  AlignedWords panel_words_;  // [strips, groups, kTileBlocks, row_words, kLanes]
  std::unique_ptr<Panel[]> strip_panels_;  // [strips, groups], the one that is multiplied
  Pieces fillings_;                        // of them, where parts share them
};

}  // namespace onnxcomp::binary
