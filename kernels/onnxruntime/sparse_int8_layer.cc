#include "onnxruntime/sparse_int8_layer.h"

#include <string>

namespace onnxcomp::ort {
namespace {

int32_t zero_point(FunctionTable api, const KernelInfo* info, const char* name) {
  const int64_t value = int_attribute(api, info, name);
  if (value < 0 || value > 255)
    throw InvalidArgument(std::string(name) + " is " + std::to_string(value) +
                          ", expected 0 to 255");
  return static_cast<int32_t>(value);
}

// One number for each output channel.
TensorView channel_constant(FunctionTable api, const KernelInfo* info, size_t input,
                            const char* name, ElementType type, int64_t channels) {
  const TensorView tensor = constant_input(api, info, input, name, type, 1);
  if (tensor.shape[0] != channels)
    throw InvalidArgument(std::string(name) + " has shape " + describe(tensor.shape) +
                          ", expected [" + std::to_string(channels) + "]");
  return tensor;
}

}  // namespace

sparse_int8::Layer read_sparse_int8_layer(FunctionTable api, const KernelInfo* info,
                                          int64_t positions, int64_t groups, bool to_codes,
                                          std::vector<Copy>* copies) {
  check_format_version(api, info, sparse_int8::kFormatVersion);
  sparse_int8::PackedWeights weights;
  const PackedLengths lengths = read_lists(api, info, ElementType::kInt8, 3, &weights, copies);
  weights.out_channels = int_attribute(api, info, "out_channels");
  weights.in_channels = int_attribute(api, info, "in_channels");
  weights.block_rows = int_attribute(api, info, "block_rows");
  weights.positions = positions;
  weights.groups = groups;
  refuse(find_defect(weights, lengths));

  const int64_t channels = weights.out_channels;
  const TensorView scale =
      channel_constant(api, info, kScale, "scale", ElementType::kFloat, channels);
  const auto* scales = static_cast<const float*>(scale.data);
  refuse(sparse_int8::find_scale_defect(scales, channels));
  TensorView bias{};
  size_t inputs = 0;
  check(api, GetNodeInputCount::call(api, info, &inputs));
  if (inputs > kBias)
    bias = channel_constant(api, info, kBias, "bias", ElementType::kInt32, channels);
  return {weights, scales, static_cast<const int32_t*>(bias.data),
          zero_point(api, info, "x_zero_point"),
          to_codes ? zero_point(api, info, "y_zero_point") : 0};
}

}  // namespace onnxcomp::ort
