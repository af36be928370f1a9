#include "bindings/binary.h"

#include <nanobind/stl/array.h>
#include <nanobind/stl/optional.h>

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "bindings/kernels.h"
#include "binary/conv.h"
#include "binary/dispatch.h"
#include "binary/gemm.h"
#include "binary/planes.h"

namespace onnxcomp {
namespace {

using Words4 = Array<uint64_t, 4>;
using Channels = std::optional<Array<float, 1>>;
using Integers = Array<int32_t, 1>;
// kernel_shape, strides, pads, dilations
using WindowNumbers = std::array<int64_t, 10>;

const binary::Kernel& kernel_of(const std::string& isa) {
  return existing(binary::find_kernel(isa.c_str()), isa);
}

template <class Element>
nb::ndarray<nb::numpy, Element> new_array(const std::vector<int64_t>& shape) {
  std::vector<size_t> dimensions;
  size_t count = 1;
  for (const int64_t size : shape) count *= dimensions.emplace_back(static_cast<size_t>(size));
  auto* elements = new Element[count];
  const nb::capsule owner(elements, [](void* memory) noexcept { delete[] static_cast<Element*>(memory); });
  return nb::ndarray<nb::numpy, Element>(elements, dimensions.size(), dimensions.data(), owner);
}

template <class Tasks, class... Output>
void run_all(const Tasks& tasks, const Output&... out) {
  nb::gil_scoped_release unlocked;
  for (int64_t task = 0; task < tasks.task_count(); ++task) tasks.run(task, out...);
}

binary::Window window_of(const WindowNumbers& numbers) {
  binary::Window window;
  for (size_t axis = 0; axis < 2; ++axis) {
    window.kernel[axis] = numbers[axis];
    window.strides[axis] = numbers[2 + axis];
    window.dilations[axis] = numbers[8 + axis];
  }
  for (size_t side = 0; side < 4; ++side) window.pads[side] = numbers[4 + side];
  return window;
}

std::vector<int64_t> image_shape(const binary::Window& window, const Words4& x, int64_t channels) {
  const int64_t height = length(x.shape(2)), width = length(x.shape(3));
  const int64_t rows = window.output_size(0, height), columns = window.output_size(1, width);
  if (height < 1 || width < 1 || rows < 1 || columns < 1)
    refuse("the window is larger than the padded image");
  return {length(x.shape(0)), channels, rows, columns};
}

const float* floats_of(const Channels& numbers, int64_t channels, const char* name) {
  if (!numbers) return nullptr;
  if (length(numbers->size()) != channels)
    refuse(std::string("the length of ") + name + " is not that of the outputs");
  return numbers->data();
}

binary::ConvWeights conv_weights(const Array<uint64_t, 3>& bits, int64_t in_channels, int64_t group,
                                 const WindowNumbers& window, const Words4& x) {
  const binary::ConvWeights weights{bits.data(), length(bits.shape(0)), in_channels, group,
                                    window_of(window)};
  refuse(binary::find_defect(weights, length(bits.size())));
  if (length(x.shape(1)) != binary::words_of(in_channels))
    refuse("the words of x are not those of in_channels");
  return weights;
}

auto conv_floats(const Words4& x, const Array<uint64_t, 3>& bits, int64_t in_channels, int64_t group,
                 const WindowNumbers& window, const Channels& scale, const Channels& bias,
                 const std::string& isa) {
  const binary::ConvWeights weights = conv_weights(bits, in_channels, group, window, x);
  const binary::Kernel& kernel = kernel_of(isa);
  auto y = new_array<float>(image_shape(weights.window, x, weights.out_channels));
  const binary::FloatOutput out{y.data(), floats_of(scale, weights.out_channels, "scale"),
                                floats_of(bias, weights.out_channels, "bias")};
  const std::vector<int32_t> sums = binary::sum_positions(weights);
  const binary::ConvInput input{x.data(), length(x.shape(0)), length(x.shape(2)), length(x.shape(3))};
  run_all(binary::Conv(kernel, weights, sums, input, false), out);
  return y;
}

auto conv_bits(const Words4& x, const Array<uint64_t, 3>& bits, int64_t in_channels, int64_t group,
               const WindowNumbers& window, const Integers& thresholds, const std::string& isa) {
  const binary::ConvWeights weights = conv_weights(bits, in_channels, group, window, x);
  const binary::Kernel& kernel = kernel_of(isa);
  refuse(binary::find_bits_defect(weights));
  if (length(thresholds.size()) != weights.out_channels)
    refuse("the length of thresholds is not that of the outputs");
  auto y = new_array<uint64_t>(image_shape(weights.window, x, binary::words_of(weights.out_channels)));
  const std::vector<int32_t> sums = binary::sum_positions(weights);
  const binary::ConvInput input{x.data(), length(x.shape(0)), length(x.shape(2)), length(x.shape(3))};
  run_all(binary::Conv(kernel, weights, sums, input, true),
          binary::BitOutput{y.data(), thresholds.data()});
  return y;
}

binary::GemmWeights gemm_weights(const Array<uint64_t, 3>& bits, int64_t in_channels,
                                 int64_t positions, int64_t out_features,
                                 const Array<uint64_t, 2>& x) {
  const binary::GemmWeights weights{bits.data(), in_channels, positions, out_features};
  refuse(binary::find_defect(weights, length(bits.size())));
  if (length(x.shape(1)) != weights.row_words()) refuse("the words of x are not those of the weight");
  return weights;
}

auto gemm_floats(const Array<uint64_t, 2>& x, const Array<uint64_t, 3>& bits, int64_t in_channels,
                 int64_t positions, int64_t out_features, const Channels& scale,
                 const Channels& bias, const std::string& isa) {
  const binary::GemmWeights weights = gemm_weights(bits, in_channels, positions, out_features, x);
  const binary::Kernel& kernel = kernel_of(isa);
  const int64_t rows = length(x.shape(0));
  auto y = new_array<float>({rows, out_features});
  const binary::FloatOutput out{y.data(), floats_of(scale, out_features, "scale"),
                                floats_of(bias, out_features, "bias")};
  run_all(binary::Gemm(kernel, weights, x.data(), rows), out);
  return y;
}

auto gemm_bits(const Array<uint64_t, 2>& x, const Array<uint64_t, 3>& bits, int64_t in_channels,
               int64_t positions, int64_t out_features, const Integers& thresholds,
               const std::string& isa) {
  const binary::GemmWeights weights = gemm_weights(bits, in_channels, positions, out_features, x);
  const binary::Kernel& kernel = kernel_of(isa);
  if (length(thresholds.size()) != out_features)
    refuse("the length of thresholds is not that of the outputs");
  const int64_t rows = length(x.shape(0));
  auto y = new_array<uint64_t>({rows, binary::words_of(out_features)});
  run_all(binary::Gemm(kernel, weights, x.data(), rows),
          binary::BitOutput{y.data(), thresholds.data()});
  return y;
}

auto pack_signs(const Array<float, 3>& x, const Array<float, 1>& thresholds, int comparison,
               const std::string& isa) {
  const binary::Kernel& kernel = kernel_of(isa);
  const int64_t channels = length(x.shape(1)), levels = length(thresholds.size());
  if (levels != 1 && levels != channels) refuse("there must be one threshold, or one for each channel");
  if (comparison < 0 || comparison > 3) refuse("comparison is not one of 0 to 3");
  const binary::PackInput input{x.data(),          channels,    length(x.shape(2)),
                                thresholds.data(), levels != 1, static_cast<binary::Comparison>(comparison)};
  const int64_t batch = length(x.shape(0));
  auto bits = new_array<uint64_t>({batch, binary::words_of(channels), input.positions});
  run_all(binary::Packing(kernel, input, batch, bits.data()));
  return bits;
}

auto max_pool(const Words4& x, const WindowNumbers& numbers) {
  const binary::Window window = window_of(numbers);
  refuse(binary::find_defect(window));
  auto y = new_array<uint64_t>(image_shape(window, x, length(x.shape(1))));
  run_all(binary::MaxPool(window, x.data(), length(x.shape(0) * x.shape(1)), length(x.shape(2)),
                          length(x.shape(3)), y.data()));
  return y;
}

}  // namespace

void bind_binary(nb::module_& module) {
  using nb::literals::operator""_a;
  module.def("binary_conv", &conv_floats, "x"_a, "bits"_a, "in_channels"_a, "group"_a, "window"_a,
             "scale"_a.none(), "bias"_a.none(), "isa"_a);
  module.def("binary_conv_signs", &conv_bits, "x"_a, "bits"_a, "in_channels"_a, "group"_a,
             "window"_a, "thresholds"_a, "isa"_a);
  module.def("binary_gemm", &gemm_floats, "x"_a, "bits"_a, "in_channels"_a, "positions"_a,
             "out_features"_a, "scale"_a.none(), "bias"_a.none(), "isa"_a);
  module.def("binary_gemm_signs", &gemm_bits, "x"_a, "bits"_a, "in_channels"_a, "positions"_a,
             "out_features"_a, "thresholds"_a, "isa"_a);
  module.def("pack_signs", &pack_signs, "x"_a, "thresholds"_a, "comparison"_a, "isa"_a);
  module.def("binary_max_pool", &max_pool, "x"_a, "window"_a);
  module.def("available_binary_isas", [] { return isas_of(binary::available_kernels()); });
}

}  // namespace onnxcomp
