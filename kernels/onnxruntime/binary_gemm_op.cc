#include "binary/dispatch.h"
#include "binary/gemm.h"
#include "onnxruntime/binary_ops.h"
#include "onnxruntime/binary_window.h"

namespace onnxcomp::ort {
namespace {

enum Input : size_t { kBits, kWeight, kScale, kBias, kThresholds = kScale };

std::unique_ptr<GemmKernel> create_gemm(FunctionTable api, const KernelInfo* info) {
  check_format_version(api, info, binary::kFormatVersion);
  const TensorView bits = constant_input(api, info, kWeight, "weight", ElementType::kUInt64, 3);
  auto op = std::make_unique<GemmKernel>();
  op->api = api;
  op->copy = bits.copy;
  op->weights = {static_cast<const uint64_t*>(bits.data), int_attribute(api, info, "in_channels"),
                 int_attribute(api, info, "positions"), int_attribute(api, info, "out_features")};
  refuse(binary::find_defect(op->weights, bits.shape[0] * bits.shape[1] * bits.shape[2]));
  return op;
}

const uint64_t* rows_of(const GemmKernel& op, const TensorView& x) {
  if (x.shape.size() == 2 && x.shape[1] == op.weights.row_words())
    return static_cast<const uint64_t*>(x.data);
  throw InvalidArgument("the input has shape " + describe(x.shape) + ", expected [batch, " +
                        std::to_string(op.weights.row_words()) + "]");
}

template <class Output>
void run_gemm(const GemmKernel& op, KernelContext* context, const uint64_t* x, int64_t rows,
              const Output& out) {
  const binary::Gemm gemm(*binary::find_kernel("auto"), op.weights, x, rows);
  run_tasks(op.api, context, gemm.task_count(), gemm.work() >= kSmallestParallelWork,
            [&](int64_t task) { gemm.run(task, out); });
}

void infer_gemm(FunctionTable api, ShapeInferContext* context, bool to_bits, ElementType type) {
  SymbolicShape shape = input_shape(api, context, kBits);
  if (shape.sizes.size() != 2) return;
  const int64_t features = shape_attribute(api, context, "out_features");
  shape.sizes[1] = to_bits ? binary::words_of(features) : features;
  shape.names[1] = "";
  set_output_shape(api, context, shape, type);
}

}  // namespace

std::unique_ptr<GemmKernel> BinaryGemm::create(FunctionTable api, const KernelInfo* info) {
  return create_gemm(api, info);
}

void BinaryGemm::compute(const GemmKernel& op, KernelContext* context) {
  const TensorView x = input(op.api, context, kBits);
  const uint64_t* rows = rows_of(op, x);
  const int64_t features = op.weights.out_features;
  const TensorView scale = channel_input(op.api, context, kScale, "scale", ElementType::kFloat, features);
  const TensorView bias = channel_input(op.api, context, kBias, "bias", ElementType::kFloat, features);
  void* y = output(op.api, context, {x.shape[0], features});
  run_gemm(op, context, rows, x.shape[0],
           binary::FloatOutput{static_cast<float*>(y), static_cast<const float*>(scale.data),
                               static_cast<const float*>(bias.data)});
}

void BinaryGemm::infer_shape(FunctionTable api, ShapeInferContext* context) {
  infer_gemm(api, context, false, kOutput);
}

std::unique_ptr<GemmKernel> BinaryGemmSigns::create(FunctionTable api, const KernelInfo* info) {
  return create_gemm(api, info);
}

void BinaryGemmSigns::compute(const GemmKernel& op, KernelContext* context) {
  const TensorView x = input(op.api, context, kBits);
  const uint64_t* rows = rows_of(op, x);
  const int64_t features = op.weights.out_features;
  const TensorView thresholds = thresholds_of(op.api, context, kThresholds, features);
  void* y = output(op.api, context, {x.shape[0], binary::words_of(features)});
  run_gemm(op, context, rows, x.shape[0],
           binary::BitOutput{static_cast<uint64_t*>(y),
                             static_cast<const int32_t*>(thresholds.data)});
}

void BinaryGemmSigns::infer_shape(FunctionTable api, ShapeInferContext* context) {
  infer_gemm(api, context, true, kOutput);
}

}  // namespace onnxcomp::ort
