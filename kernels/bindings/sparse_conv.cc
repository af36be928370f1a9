#include "bindings/sparse_conv.h"

#include <nanobind/stl/optional.h>

#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/products.h"
#include "sparse/conv.h"
#include "sparse/matmul.h"

namespace onnxcomp {
namespace {

using Integers = Array<int32_t, 1>;
// values, indices, offsets; out_channels, in_channels, groups, block_size
using Weights =
    std::tuple<Array<float, 2>, Integers, Integers, int64_t, int64_t, int64_t, int64_t>;

sparse::PackedWeights packed_weights(const Weights& given, int64_t positions) {
  const auto& [values, indices, offsets, out, in, groups, size] = given;
  refuse(sparse::find_channel_defect(in, positions));
  const sparse::PackedWeights weights{values.data(), indices.data(), offsets.data(), in * positions,
                                      out,           size,           groups};
  refuse(find_defect(weights,
                     {length(values.size()), length(indices.size()), length(offsets.size())}));
  return weights;
}

nb::object sparse_conv(const Array<float, 4>& x, const Weights& given,
                       const std::optional<Array<float, 1>>& bias, bool relu, const Axis& rows,
                       const Axis& columns, const std::string& isa) {
  const sparse::Kernel* kernel = sparse::find_kernel(isa.c_str());
  if (kernel == nullptr) refuse("this processor has no kernel named " + isa);
  const ConvShape window = window_of(rows, columns);
  const sparse::PackedWeights weights = packed_weights(given, window.positions());
  if (bias && length(bias->size()) != weights.out_features)
    throw nb::value_error("the length of bias is not out_channels");
  const int64_t height = length(x.shape(2)), width = length(x.shape(3));
  if (length(x.shape(1)) != weights.groups * (weights.in_features / window.positions()))
    throw nb::value_error("the channels of x are not in_channels times groups");
  const auto shape = output_shape(window, x.shape(0), weights.out_features, height, width);
  const float low = relu ? 0.0f : -std::numeric_limits<float>::infinity();
  return filled<float>(shape, [&](float* y) {
    Scratch scratch;
    run(sparse::Conv(*kernel, weights, bias ? bias->data() : nullptr, low, window, scratch,
                     x.data(), length(x.shape(0)), height, width, y));
  });
}

}  // namespace

void bind_sparse_conv(nb::module_& module) {
  using nb::literals::operator""_a;
  module.def("sparse_conv", &sparse_conv, "x"_a, "weights"_a, "bias"_a.none(), "relu"_a, "rows"_a,
             "columns"_a, "isa"_a);
}

}  // namespace onnxcomp
