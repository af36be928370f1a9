#pragma once

#include <string>
#include <vector>

#include "convolution/geometry.h"
#include "onnxruntime/arguments.h"

// Windows of sparse convolutions as attributes say them, over [images, channels, height, width].

namespace onnxcomp::ort {

// `read(name, count)` gives an attribute of the node.
template <class Read>
ConvShape read_window(const Read& read) {
  const std::vector<int64_t> taps = read("kernel_shape", size_t{2});
  const std::vector<int64_t> strides = read("strides", size_t{2});
  const std::vector<int64_t> dilations = read("dilations", size_t{2});
  const std::vector<int64_t> pads = read("pads", size_t{4});
  const ConvShape window{ConvAxis{taps[0], strides[0], dilations[0], pads[0], pads[2]},
                         ConvAxis{taps[1], strides[1], dilations[1], pads[1], pads[3]}};
  const std::string defect = find_defect(window);
  if (!defect.empty()) throw InvalidArgument(defect);
  return window;
}

inline ConvShape conv_window(FunctionTable api, const KernelInfo* info) {
  return read_window(
      [&](const char* name, size_t count) { return ints_attribute(api, info, name, count); });
}

// The output's shape, with so many channels. X has four dimensions.
inline std::vector<int64_t> conv_output(const ConvShape& window, const std::vector<int64_t>& x,
                                        int64_t channels) {
  const std::vector<int64_t> shape = {x[0], channels, window.rows.outputs(x[2]),
                                      window.columns.outputs(x[3])};
  if (shape[2] < 1 || shape[3] < 1)
    throw InvalidArgument("X has shape " + describe(x) + ", which is smaller than the kernel");
  return shape;
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
  if (shape.sizes.size() != 4) return;
  const ConvShape window = read_window(
      [&](const char* name, size_t count) { return shape_attribute(api, context, name, count); });
  infer_size(window.rows, shape, 2);
  infer_size(window.columns, shape, 3);
  shape.sizes[1] = shape_attribute(api, context, "out_channels", 1)[0];
  shape.names[1] = "";
  set_output_shape(api, context, shape, type);
}

}  // namespace onnxcomp::ort
