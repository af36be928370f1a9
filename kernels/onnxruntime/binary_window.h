#pragma once

#include <string>
#include <vector>

#include "binary/packed_weights.h"
#include "onnxruntime/arguments.h"

// Windows as attributes say them, and the images they slide over: [batch, planes, height, width].

namespace onnxcomp::ort {

// Fewer words than this are compared in less time than waking a thread takes.
inline constexpr int64_t kSmallestParallelWork = int64_t{1} << 17;

// Where a model leaves out what the operator requires, onnxruntime may hand on that it is not there.
inline TensorView thresholds_of(FunctionTable api, const KernelContext* context, size_t input,
                                int64_t count) {
  TensorView found = channel_input(api, context, input, "thresholds", ElementType::kInt32, count);
  if (found.data == nullptr) throw InvalidArgument("thresholds are missing");
  return found;
}

// `numbers(name, count)` reads an attribute; a pool's window has no dilations.
template <class Numbers>
binary::Window window_of(const Numbers& numbers, bool dilated) {
  const auto copy = [&](const char* name, size_t count, int64_t* to) {
    const std::vector<int64_t> found = numbers(name, count);
    for (size_t i = 0; i < count; ++i) to[i] = found[i];
  };
  binary::Window window;
  copy("kernel_shape", 2, window.kernel);
  copy("strides", 2, window.strides);
  copy("pads", 4, window.pads);
  if (dilated) copy("dilations", 2, window.dilations);
  refuse(binary::find_defect(window));
  return window;
}

inline binary::Window window_of_kernel(FunctionTable api, const KernelInfo* info, bool dilated) {
  return window_of([&](const char* name, size_t n) { return ints_attribute(api, info, name, n); },
                   dilated);
}

// The output's shape, with `planes` of them, at run time.
inline std::vector<int64_t> image_output(const binary::Window& window,
                                         const std::vector<int64_t>& x, int64_t planes) {
  if (x.size() == 4 && x[2] > 0 && x[3] > 0) {
    const int64_t rows = window.output_size(0, x[2]), columns = window.output_size(1, x[3]);
    if (rows > 0 && columns > 0) return {x[0], planes, rows, columns};
  }
  throw InvalidArgument("the input has shape " + describe(x) +
                        ", expected [batch, words, height, width] and room for the window");
}

// The same when the model is loaded, as far as it is known. `planes` below 0 keeps the input's.
inline void infer_image_output(FunctionTable api, ShapeInferContext* context, bool dilated,
                               int64_t planes, ElementType type) {
  const auto attribute = [&](const char* name, size_t n) {
    return shape_ints(api, context, name, n);
  };
  const binary::Window window = window_of(attribute, dilated);
  SymbolicShape shape = input_shape(api, context, 0);
  if (shape.sizes.size() != 4) return;
  if (planes >= 0) shape.sizes[1] = planes;
  for (int axis = 0; axis < 2; ++axis) {
    int64_t& size = shape.sizes[static_cast<size_t>(2 + axis)];
    shape.names[static_cast<size_t>(2 + axis)] = "";
    if (size >= 0) size = window.output_size(axis, size);
  }
  set_output_shape(api, context, shape, type);
}

}  // namespace onnxcomp::ort
