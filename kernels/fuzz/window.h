#pragma once

#include "convolution/geometry.h"
#include "fuzz/reader.h"

// What the convolutions by sparse weights have in common.

namespace onnxcomp::fuzz {

struct Images {
  int64_t count;
  int64_t height;
  int64_t width;

  int64_t pixels() const { return height * width; }
};

// Three bytes.
inline Images read_images(Reader& reader) {
  Images images;
  images.count = reader.byte();
  images.height = reader.byte();
  images.width = reader.byte();
  return images;
}

// Numbers taps, stride, dilation, pad_before and pad_after of the rows and of the columns.
inline ConvShape read_window(Reader& reader) {
  ConvShape window;
  for (ConvAxis* axis : {&window.rows, &window.columns}) {
    axis->taps = reader.number();
    axis->stride = reader.number();
    axis->dilation = reader.number();
    axis->pad_before = reader.number();
    axis->pad_after = reader.number();
  }
  return window;
}

// Pixels of one channel of one image of the result; 0 where no window fits, or with so many channels
// it would take long.
inline int64_t result_pixels(const ConvShape& window, const Images& images, int64_t inputs, int64_t outputs) {
  const int64_t height = images.height + window.rows.pad_before + window.rows.pad_after;
  const int64_t width = images.width + window.columns.pad_before + window.columns.pad_after;
  if (!is_small({images.count, height, width, inputs}) || !is_small({window.positions(), inputs})) return 0;
  const int64_t rows = window.rows.outputs(images.height), columns = window.columns.outputs(images.width);
  return rows > 0 && columns > 0 && is_small({images.count, rows, columns, outputs}) ? rows * columns : 0;
}

}  // namespace onnxcomp::fuzz
