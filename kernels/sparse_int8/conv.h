#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "sparse_int8/layer.h"
#include "sparse_int8/scratch.h"

namespace onnxcomp::sparse_int8 {

// One axis of a convolution, as ONNX counts: the window of `taps` pixels, `dilation` apart, begins
// `pad_before` pixels outside the image and moves by `stride`.
struct ConvAxis {
  int64_t taps = 1;
  int64_t stride = 1;
  int64_t dilation = 1;
  int64_t pad_before = 0;
  int64_t pad_after = 0;

  // Below 1 where no window fits.
  int64_t outputs(int64_t pixels) const;
};

struct ConvShape {
  ConvAxis rows;
  ConvAxis columns;
};

// One line that says which number is out of range, or an empty string.
std::string find_defect(const ConvShape& shape);

// Pixels of an axis with one remainder modulo the stride, in the padded copy: those from `first` to
// `last` (exclusive) are the image's, from `pixel` on; the others are padding.
struct CopyPhase {
  int64_t first;
  int64_t last;
  int64_t pixel;
};

// One axis of the padded copy. Its pixels are dealt out by their remainder modulo the stride, so
// that the pixels that one tap reads are neighbours: a convolution of stride 1 over several images.
struct CopyAxis {
  CopyAxis(const ConvAxis& axis, int64_t pixels);

  // Whether the copy is the axis as it was.
  bool copies(int64_t pixels) const;

  int64_t outputs;
  int64_t length;                  // pixels of each phase
  std::vector<CopyPhase> phases;   // those that a tap reads
  std::vector<int64_t> tap_phase;  // [taps]: which of `phases`
  std::vector<int64_t> tap_shift;  // [taps]: pixels between an output and what it reads
};

// Y[images, out_channels, rows, columns] = scaled(conv(X[images, channels, height, width], W)), cut
// into tasks as MatMul is. X is copied to [images, quads, row phases, column phases, rows, columns,
// 4], padded by its zero point. Outputs are computed along the rows of the copy, across their ends:
// the columns of a tile that are no output's are left out when it is written.
class Conv {
 public:
  // Neither the shape nor the layer has a defect, `positions` is the number of taps, and at least
  // one window fits. Exactly one of `codes` and `results` is given. X is copied to `scratch`;
  // throws std::bad_alloc when there is no room for it.
  Conv(const Kernel& kernel, const Layer& layer, const ConvShape& shape, Scratch& scratch,
       const uint8_t* x, int64_t images, int64_t height, int64_t width, uint8_t* codes,
       float* results);

  int64_t fill_task_count() const { return images_ * quads_; }
  void fill(int64_t task) const noexcept;

  int64_t multiply_task_count() const { return images_ * tiles_ * parts_; }
  void multiply(int64_t task) const noexcept;

  int64_t work() const;

 private:
  // Pixels of one row of outputs within a tile: from a column of the tile to pixels of the image.
  struct Segment {
    int64_t from;
    int64_t to;
    int64_t length;
  };
  int find_segments(int64_t first_column, int64_t last_column, Segment* segments) const;

  int64_t flat_columns() const;
  int64_t plane_bytes() const;
  int64_t quad_bytes() const;
  void fill_row(const Planes& planes, int64_t start, const CopyPhase& phase, uint8_t* to) const;
  void fill_with_padding(uint8_t* to, int64_t pixels) const;
  template <class Result, class Multiply>
  void multiply_tile(Multiply multiply, int64_t image, int64_t tile, BlockRange blocks,
                     Result* y) const;

  const Kernel& kernel_;
  const Layer& layer_;
  const ConvShape shape_;
  const uint8_t* x_;
  int64_t images_;
  int64_t height_;
  int64_t width_;
  uint8_t* codes_;
  float* results_;
  CopyAxis rows_;
  CopyAxis columns_;
  int64_t quads_;  // of one image, all groups
  int64_t tiles_;
  int64_t parts_ = 1;
  std::vector<int64_t> places_;
  std::vector<uint8_t> missing_;  // a channel that fills up a quad
  uint8_t* copy_ = nullptr;
};

}  // namespace onnxcomp::sparse_int8
