#pragma once

#include <cstdint>
#include <vector>

#include "convolution/copies.h"
#include "cpu/scratch.h"
#include "sparse_int8/layer.h"
#include "sparse_int8/output_parts.h"

namespace onnxcomp::sparse_int8 {

// Y[images, out_channels, rows, columns] = scaled(conv(X[images, channels, height, width], W)), cut
// into tasks as MatMul is. X is copied to [images, quads, ...] as ConvGeometry says, four bytes a
// pixel, padded by its zero point.
class Conv {
 public:
  // Neither the shape nor the layer has a defect, `positions` is the number of taps, and at least
  // one window fits. Exactly one of `codes` and `results` is given. X is copied to `scratch`;
  // throws std::bad_alloc when there is no room for it.
  Conv(const Kernel& kernel, const Layer& layer, const ConvShape& shape, Scratch& scratch,
       const uint8_t* x, int64_t images, int64_t height, int64_t width, uint8_t* codes,
       float* results);

  int64_t task_count() const { return images_ * tiles_ * parts_.count(); }
  void run(int64_t task) const noexcept;

  int64_t work() const;

 private:
  void fill(const CopyPiece& piece) const noexcept;
  Planes planes_of(int64_t image, int64_t quad) const;
  void fill_rows(const Planes& planes, int64_t first_row, int64_t last_row, uint8_t* to) const;
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
  int64_t quads_;  // of one image, all groups
  ConvGeometry geometry_;
  int64_t quad_bytes_;  // from one quad to the next, in the copy
  int64_t tiles_;
  Copies copies_;
  OutputParts parts_;
  std::vector<int64_t> places_;
  std::vector<uint8_t> missing_;  // a channel that fills up a quad
  uint8_t* copy_ = nullptr;
};

}  // namespace onnxcomp::sparse_int8
