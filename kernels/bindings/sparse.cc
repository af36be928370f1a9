#include "bindings/sparse.h"

#include <nanobind/stl/optional.h>

#include <limits>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/kernels.h"
#include "bindings/products.h"
#include "sparse/conv.h"
#include "sparse/matmul.h"

namespace onnxcomp {
namespace {

using sparse::Kernel;

// values, indices, offsets; out_channels, in_channels, groups, block_size
using Weights =
    std::tuple<Array<float, 2>, Integers, Integers, int64_t, int64_t, int64_t, int64_t>;

nb::object sparse_matmul(const Array<float, 2>& x, const Array<float, 2>& values,
                         const Integers& indices, const Integers& offsets,
                         const std::optional<Array<float, 1>>& bias, int64_t in_features,
                         int64_t out_features, int64_t block_size, const std::string& isa) {
  const Kernel& kernel = existing(sparse::find_kernel(isa.c_str()), isa);
  const sparse::PackedWeights weights{values.data(), indices.data(), offsets.data(),
                                      in_features,   out_features,   block_size};
  refuse(find_defect(weights, lengths_of(values, indices, offsets)));
  if (length(x.shape(1)) != in_features)
    throw nb::value_error("the last dimension of x is not in_features");
  if (bias && length(bias->size()) != out_features)
    throw nb::value_error("the length of bias is not out_features");
  return filled<float>({x.shape(0), static_cast<size_t>(out_features)}, [&](float* y) {
    Scratch scratch;
    run_tasks(sparse::MatMul(kernel, weights, bias ? bias->data() : nullptr, scratch, x.data(),
                             length(x.shape(0)), y));
  });
}

sparse::PackedWeights packed_weights(const Weights& given, int64_t positions) {
  const auto& [values, indices, offsets, out, in, groups, size] = given;
  refuse(sparse::find_channel_defect(in, positions));
  const sparse::PackedWeights weights{values.data(), indices.data(), offsets.data(), in * positions,
                                      out,           size,           groups};
  refuse(find_defect(weights, lengths_of(values, indices, offsets)));
  return weights;
}

nb::object sparse_conv(const Array<float, 4>& x, const Weights& given,
                       const std::optional<Array<float, 1>>& bias, bool relu, const Axis& rows,
                       const Axis& columns, const std::string& isa) {
  const Kernel& kernel = existing(sparse::find_kernel(isa.c_str()), isa);
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
    run(sparse::Conv(kernel, weights, bias ? bias->data() : nullptr, low, window, scratch,
                     x.data(), length(x.shape(0)), height, width, y));
  });
}

}  // namespace

void bind_sparse(nb::module_& module) {
  using nb::literals::operator""_a;
  module.def("sparse_matmul", &sparse_matmul, "x"_a, "values"_a, "indices"_a, "offsets"_a,
             "bias"_a.none(), "in_features"_a, "out_features"_a, "block_size"_a, "isa"_a);
  module.def("available_isas", [] { return isas_of(sparse::available_kernels()); });
  module.def("sparse_conv", &sparse_conv, "x"_a, "weights"_a, "bias"_a.none(), "relu"_a, "rows"_a,
             "columns"_a, "isa"_a);
}

}  // namespace onnxcomp
