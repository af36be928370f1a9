#include "binary/conv.h"
#include "binary/dispatch.h"
#include "onnxruntime/binary_ops.h"
#include "onnxruntime/binary_window.h"

namespace onnxcomp::ort {
namespace {

enum Input : size_t { kBits, kWeight, kScale, kBias, kThresholds = kScale };

std::unique_ptr<ConvKernel> create_conv(FunctionTable api, const KernelInfo* info) {
  check_format_version(api, info, binary::kFormatVersion);
  const TensorView bits = constant_input(api, info, kWeight, "weight", ElementType::kUInt64, 3);
  auto op = std::make_unique<ConvKernel>();
  op->api = api;
  op->copy = bits.copy;
  op->weights = {static_cast<const uint64_t*>(bits.data), bits.shape[0],
                 int_attribute(api, info, "in_channels"), int_attribute(api, info, "group"),
                 window_of_kernel(api, info, true)};
  refuse(binary::find_defect(op->weights, bits.shape[0] * bits.shape[1] * bits.shape[2]));
  op->position_sums = binary::sum_positions(op->weights);
  return op;
}

binary::ConvInput conv_input(const ConvKernel& op, const TensorView& x) {
  if (x.shape.size() != 4 || x.shape[1] != binary::words_of(op.weights.in_channels))
    throw InvalidArgument("the input has shape " + describe(x.shape) + ", expected [batch, " +
                          std::to_string(binary::words_of(op.weights.in_channels)) +
                          ", height, width]");
  return {static_cast<const uint64_t*>(x.data), x.shape[0], x.shape[2], x.shape[3]};
}

template <class Output>
void run_conv(const ConvKernel& op, KernelContext* context, const binary::ConvInput& input,
              bool to_bits, const Output& out) {
  const binary::Conv conv(*binary::find_kernel("auto"), op.weights, op.position_sums, input, to_bits);
  run_tasks(op.api, context, conv.task_count(), conv.work() >= kSmallestParallelWork,
            [&](int64_t task) { conv.run(task, out); });
}

// Output channels are the first dimension of the weight.
void infer_conv(FunctionTable api, ShapeInferContext* context, bool to_bits, ElementType type) {
  const SymbolicShape weight = input_shape(api, context, kWeight);
  if (weight.sizes.size() != 3 || weight.sizes[0] < 0) return;
  infer_image_output(api, context, true,
                     to_bits ? binary::words_of(weight.sizes[0]) : weight.sizes[0], type);
}

}  // namespace

std::unique_ptr<ConvKernel> BinaryConv::create(FunctionTable api, const KernelInfo* info) {
  return create_conv(api, info);
}

void BinaryConv::compute(const ConvKernel& op, KernelContext* context) {
  const TensorView x = input(op.api, context, kBits);
  const int64_t channels = op.weights.out_channels;
  const binary::ConvInput input = conv_input(op, x);
  const std::vector<int64_t> shape = image_output(op.weights.window, x.shape, channels);
  const TensorView scale = channel_input(op.api, context, kScale, "scale", ElementType::kFloat, channels);
  const TensorView bias = channel_input(op.api, context, kBias, "bias", ElementType::kFloat, channels);
  void* y = output(op.api, context, shape);
  run_conv(op, context, input, false,
           binary::FloatOutput{static_cast<float*>(y), static_cast<const float*>(scale.data),
                               static_cast<const float*>(bias.data)});
}

void BinaryConv::infer_shape(FunctionTable api, ShapeInferContext* context) {
  infer_conv(api, context, false, kOutput);
}

std::unique_ptr<ConvKernel> BinaryConvSigns::create(FunctionTable api, const KernelInfo* info) {
  auto op = create_conv(api, info);
  refuse(binary::find_bits_defect(op->weights));
  return op;
}

void BinaryConvSigns::compute(const ConvKernel& op, KernelContext* context) {
  const TensorView x = input(op.api, context, kBits);
  const int64_t channels = op.weights.out_channels;
  const binary::ConvInput input = conv_input(op, x);
  const std::vector<int64_t> shape =
      image_output(op.weights.window, x.shape, binary::words_of(channels));
  const TensorView thresholds = thresholds_of(op.api, context, kThresholds, channels);
  void* y = output(op.api, context, shape);
  run_conv(op, context, input, true,
           binary::BitOutput{static_cast<uint64_t*>(y),
                             static_cast<const int32_t*>(thresholds.data)});
}

void BinaryConvSigns::infer_shape(FunctionTable api, ShapeInferContext* context) {
  infer_conv(api, context, true, kOutput);
}

}  // namespace onnxcomp::ort
