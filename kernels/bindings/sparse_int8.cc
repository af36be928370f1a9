#include "bindings/sparse_int8.h"

#include <nanobind/stl/optional.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/kernels.h"
#include "bindings/products.h"
#include "sparse_int8/conv.h"
#include "sparse_int8/dispatch.h"
#include "sparse_int8/matmul.h"

namespace onnxcomp {
namespace {

using sparse_int8::Conv;
using sparse_int8::Kernel;
using sparse_int8::Layer;
using sparse_int8::MatMul;
using sparse_int8::PackedWeights;

// values, indices, offsets; out_channels, in_channels, positions, groups, block_rows
using Weights =
    std::tuple<Array<int8_t, 3>, Integers, Integers, int64_t, int64_t, int64_t, int64_t, int64_t>;
// scale, bias, zero point of x and, for codes, of y
using Scales =
    std::tuple<Array<float, 1>, std::optional<Integers>, int32_t, std::optional<int32_t>>;

Layer make_layer(const Weights& given, const Scales& scales) {
  const auto& [values, indices, offsets, out, in, positions, groups, rows] = given;
  const PackedWeights weights{
      values.data(), indices.data(), offsets.data(), out, in, positions, groups, rows};
  refuse(find_defect(weights, lengths_of(values, indices, offsets)));
  const auto& [scale, bias, x_zero_point, y_zero_point] = scales;
  if (length(scale.size()) != out || (bias && length(bias->size()) != out))
    throw nb::value_error("the length of scale or bias is not out_channels");
  refuse(sparse_int8::find_scale_defect(scale.data(), out));
  for (const int32_t zero_point : {x_zero_point, y_zero_point.value_or(0)}) {
    if (zero_point < 0 || zero_point > 255) throw nb::value_error("a zero point is not 0 to 255");
  }
  return Layer(weights, scale.data(), bias ? bias->data() : nullptr, x_zero_point,
               y_zero_point.value_or(0));
}

const Kernel& kernel_of(const std::string& isa) {
  return existing(sparse_int8::find_kernel(isa.c_str()), isa);
}

// compute(codes, results), of which one is null.
template <class Compute>
nb::object codes_or_results(bool codes, const std::vector<size_t>& shape, const Compute& compute) {
  if (codes) return filled<uint8_t>(shape, [&](uint8_t* y) { compute(y, nullptr); });
  return filled<float>(shape, [&](float* y) { compute(nullptr, y); });
}

nb::object sparse_int8_matmul(const Array<uint8_t, 2>& x, const Weights& weights,
                              const Scales& scales, const std::string& isa) {
  const Kernel& kernel = kernel_of(isa);
  const Layer layer = make_layer(weights, scales);
  const PackedWeights& packed = layer.weights();
  if (packed.positions != 1 || packed.groups != 1)
    throw nb::value_error("a matrix has one position and one group");
  if (length(x.shape(1)) != packed.in_channels)
    throw nb::value_error("the last dimension of x is not in_channels");
  const std::vector<size_t> shape{x.shape(0), static_cast<size_t>(packed.out_channels)};
  return codes_or_results(
      std::get<3>(scales).has_value(), shape, [&](uint8_t* codes, float* results) {
        Scratch scratch;
        run_tasks(MatMul(kernel, layer, scratch, x.data(), length(x.shape(0)), codes, results));
      });
}

// (taps, stride, dilation, padding before and after) of the rows and of the columns
nb::object sparse_int8_conv(const Array<uint8_t, 4>& x, const Weights& weights,
                            const Scales& scales, const Axis& rows, const Axis& columns,
                            const std::string& isa) {
  const Kernel& kernel = kernel_of(isa);
  const Layer layer = make_layer(weights, scales);
  const PackedWeights& packed = layer.weights();
  const ConvShape window = window_of(rows, columns);
  if (packed.positions != window.positions())
    throw nb::value_error("positions are not the taps of the kernel");
  const int64_t height = length(x.shape(2)), width = length(x.shape(3));
  if (length(x.shape(1)) != packed.groups * packed.in_channels)
    throw nb::value_error("the channels of x are not in_channels times groups");
  const std::vector<size_t> shape = output_shape(window, x.shape(0), packed.out_channels, height, width);
  return codes_or_results(std::get<3>(scales).has_value(), shape,
                          [&](uint8_t* codes, float* results) {
                            Scratch scratch;
                            run_tasks(Conv(kernel, layer, window, scratch, x.data(), length(x.shape(0)),
                                           height, width, codes, results));
                          });
}

}  // namespace

void bind_sparse_int8(nb::module_& module) {
  using nb::literals::operator""_a;
  module.def("sparse_int8_matmul", &sparse_int8_matmul, "x"_a, "weights"_a, "scales"_a, "isa"_a);
  module.def("sparse_int8_conv", &sparse_int8_conv, "x"_a, "weights"_a, "scales"_a, "rows"_a,
             "columns"_a, "isa"_a);
  module.def("available_int8_isas", [] { return isas_of(sparse_int8::available_kernels()); });
}

}  // namespace onnxcomp
