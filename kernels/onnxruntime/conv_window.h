#pragma once

#include <string>
#include <vector>

#include "convolution/geometry.h"
#include "onnxruntime/arguments.h"

// Windows of sparse convolutions as attributes say them, over [images, channels, height, width] or
// [images, channels, width], which is one row.

namespace onnxcomp::ort {

struct ConvWindow {
  ConvShape shape;
  size_t dimensions;  // 1 or 2
};

// `read(name, count)` gives an attribute of the node.
template <class Read>
ConvWindow read_window(const Read& read, size_t dimensions) {
  const std::vector<int64_t> taps = read("kernel_shape", dimensions);
  const std::vector<int64_t> strides = read("strides", dimensions);
  const std::vector<int64_t> dilations = read("dilations", dimensions);
  const std::vector<int64_t> pads = read("pads", 2 * dimensions);
  const auto axis = [&](size_t at) {
    return ConvAxis{taps[at], strides[at], dilations[at], pads[at], pads[dimensions + at]};
  };
  const ConvShape shape{dimensions == 2 ? axis(0) : ConvAxis{}, axis(dimensions - 1)};
  refuse(find_defect(shape));
  return {shape, dimensions};
}

inline ConvWindow conv_window(FunctionTable api, const KernelInfo* info) {
  const size_t dimensions = ints_count(api, info, "kernel_shape");
  if (dimensions != 1 && dimensions != 2)
    throw InvalidArgument("kernel_shape has " + std::to_string(dimensions) +
                          " numbers, expected 1 or 2");
  return read_window(
      [&](const char* name, size_t count) { return ints_attribute(api, info, name, count); },
      dimensions);
}

// What X has, and the output's shape.
struct ConvImages {
  int64_t count;
  int64_t height;
  int64_t width;
  std::vector<int64_t> output;
};

// `channels` are those of X, and `type` is what its elements are called.
inline ConvImages conv_images(const ConvWindow& window, const std::vector<int64_t>& x,
                              const char* type, int64_t channels, int64_t out_channels) {
  const bool is_flat = window.dimensions == 1;
  if (x.size() != 2 + window.dimensions || x[1] != channels)
    throw InvalidArgument("X has shape " + describe(x) + ", expected " + type + " [images, " +
                          std::to_string(channels) + (is_flat ? ", width]" : ", height, width]"));
  ConvImages images{x[0], is_flat ? 1 : x[2], x.back(), {x[0], out_channels}};
  const int64_t rows = window.shape.rows.outputs(images.height);
  const int64_t columns = window.shape.columns.outputs(images.width);
  if (rows < 1 || columns < 1)
    throw InvalidArgument("X has shape " + describe(x) + ", which is smaller than the kernel");
  if (!is_flat) images.output.push_back(rows);
  images.output.push_back(columns);
  return images;
}

// What becomes of a size: -1 where it is neither known nor left as it is.
inline void infer_size(const ConvAxis& axis, SymbolicShape& shape, size_t at) {
  if (shape.sizes[at] >= 0) {
    shape.sizes[at] = axis.outputs(shape.sizes[at]);
    return;
  }
  const int64_t padding = axis.pad_before + axis.pad_after;
  if (axis.stride != 1 || padding != axis.dilation * (axis.taps - 1)) shape.names[at] = "";
}

// The shape of the output when the model is loaded, as far as it is known; input 0 is X.
inline void infer_conv_output(FunctionTable api, ShapeInferContext* context, ElementType type) {
  SymbolicShape shape = input_shape(api, context, 0);
  const size_t dimensions = shape.sizes.size() - 2;
  if (dimensions != 1 && dimensions != 2) return;
  const ConvWindow window = read_window(
      [&](const char* name, size_t count) { return shape_ints(api, context, name, count); },
      dimensions);
  if (dimensions == 2) infer_size(window.shape.rows, shape, 2);
  infer_size(window.shape.columns, shape, 1 + dimensions);
  shape.sizes[1] = shape_attribute(api, context, "out_channels");
  shape.names[1] = "";
  set_output_shape(api, context, shape, type);
}

}  // namespace onnxcomp::ort
