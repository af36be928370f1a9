#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "convolution/geometry.h"
#include "cpu/scratch.h"
#include "sparse/kernels.h"

namespace onnxcomp::sparse {

// One line that says that in_channels times the positions of a kernel are no in_features, or an empty
// string.
std::string find_channel_defect(int64_t in_channels, int64_t positions);

// Y[images, out_features, rows, columns] = conv(X[images, channels, height, width], W) + bias, cut
// into tasks as MatMul is. X is read where it lies if it needs no padding, else from a padded copy.
class Conv {
 public:
  // Neither the shape nor the weights have a defect, in_features is a multiple of the positions, and
  // at least one window fits. `bias` may be null; what is less than `low` becomes that. A copy is
  // made in `scratch`; throws std::bad_alloc when there is no room for it.
  Conv(const Kernel& kernel, const PackedWeights& weights, const float* bias, float low,
       const ConvShape& shape, Scratch& scratch, const float* x, int64_t images, int64_t height,
       int64_t width, float* y);

  int64_t fill_task_count() const { return copy_ == nullptr ? 0 : images_ * channels_; }
  void fill(int64_t task) const noexcept;

  int64_t multiply_task_count() const { return images_ * tiles_ * parts_; }
  void multiply(int64_t task) const noexcept;

  // Multiply-adds, padding included: whether threads are worth waking.
  int64_t work() const;

 private:
  // Pixels that are computed together, and where they go.
  struct Tile {
    int64_t first_column;
    int64_t units;
    int segment_count;
    bool whole;  // every column goes to one place
    Segment segments[kTilePixels];
  };
  Tile tile_at(int64_t index) const;
  void lay_out(const float* bias);
  void copy_row(const float* from, const CopyPhase& phase, float* to) const;
  void multiply_blocks(const Tile& tile, int64_t image, BlockRange blocks) const;
  void write(const float* results, const Tile& tile, int64_t rows, float* to) const;

  const Kernel& kernel_;
  const PackedWeights& weights_;
  const float low_;
  const int64_t column_stride_;
  const float* x_;
  int64_t images_;
  int64_t height_;
  int64_t width_;
  float* y_;
  int64_t positions_;
  int64_t channels_;  // of one image, all groups
  ConvGeometry geometry_;
  bool slices_;  // inputs are copied slice by slice
  int64_t tile_pixels_;
  int64_t rows_together_;
  int64_t tiles_;
  int64_t parts_ = 1;
  std::vector<int64_t> places_;
  std::vector<float> bias_;  // [blocks, block_size]
  float* copy_ = nullptr;
};

}  // namespace onnxcomp::sparse
