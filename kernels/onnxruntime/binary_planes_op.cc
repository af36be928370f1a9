#include "binary/dispatch.h"
#include "onnxruntime/binary_ops.h"
#include "onnxruntime/binary_window.h"

namespace onnxcomp::ort {
namespace {

// Fewer floats than this are packed in less time than waking a thread takes.
constexpr int64_t kSmallestParallelPacking = int64_t{1} << 15;

// Thresholds of one for all channels, or one for each.
binary::PackInput pack_input(const PackSigns::Kernel& op, const TensorView& x,
                             const TensorView& thresholds) {
  static constexpr float kZero = 0.0f;
  binary::PackInput input{static_cast<const float*>(x.data), x.shape[1], 1, &kZero, false,
                          op.comparison};
  for (size_t axis = 2; axis < x.shape.size(); ++axis) input.positions *= x.shape[axis];
  if (thresholds.data == nullptr) return input;
  input.per_channel = thresholds.shape == std::vector{input.channels};
  if (!input.per_channel && thresholds.shape != std::vector<int64_t>{1})
    throw InvalidArgument("thresholds has shape " + describe(thresholds.shape) +
                          ", expected [1] or [" + std::to_string(input.channels) + "]");
  input.thresholds = static_cast<const float*>(thresholds.data);
  return input;
}

}  // namespace

std::unique_ptr<PackSigns::Kernel> PackSigns::create(FunctionTable api, const KernelInfo* info) {
  const int64_t comparison = int_attribute(api, info, "comparison");
  if (comparison < 0 || comparison > 3)
    throw InvalidArgument("comparison is " + std::to_string(comparison) + ", expected 0 to 3");
  return std::make_unique<Kernel>(Kernel{api, static_cast<binary::Comparison>(comparison)});
}

void PackSigns::compute(const Kernel& op, KernelContext* context) {
  const TensorView x = input(op.api, context, 0);
  if (x.shape.size() < 2)
    throw InvalidArgument("X has shape " + describe(x.shape) + ", expected [batch, channels, ...]");
  const bool compared = has_input(op.api, context, 1);
  const TensorView thresholds = compared ? input(op.api, context, 1) : TensorView{};
  const binary::PackInput first = pack_input(op, x, thresholds);
  std::vector<int64_t> shape = x.shape;
  shape[1] = binary::words_of(shape[1]);
  auto* bits = static_cast<uint64_t*>(output(op.api, context, shape));
  if (first.positions == 0) return;
  const binary::Packing packing(*binary::find_kernel("auto"), first, x.shape[0], bits);
  run_tasks(op.api, context, packing.task_count(), packing.work() >= kSmallestParallelPacking,
            [&](int64_t task) { packing.run(task); });
}

void PackSigns::infer_shape(FunctionTable api, ShapeInferContext* context) {
  SymbolicShape shape = input_shape(api, context, 0);
  if (shape.sizes.size() < 2 || shape.sizes[1] < 0) return;
  shape.sizes[1] = binary::words_of(shape.sizes[1]);
  set_output_shape(api, context, shape, kOutput);
}

std::unique_ptr<BinaryMaxPool::Kernel> BinaryMaxPool::create(FunctionTable api,
                                                             const KernelInfo* info) {
  return std::make_unique<Kernel>(Kernel{api, window_of_kernel(api, info, false)});
}

void BinaryMaxPool::compute(const Kernel& op, KernelContext* context) {
  const TensorView x = input(op.api, context, 0);
  const std::vector<int64_t> shape =
      image_output(op.window, x.shape, x.shape.size() == 4 ? x.shape[1] : 0);
  auto* y = static_cast<uint64_t*>(output(op.api, context, shape));
  const binary::MaxPool pool(op.window, static_cast<const uint64_t*>(x.data),
                             x.shape[0] * x.shape[1], x.shape[2], x.shape[3], y);
  run_tasks(op.api, context, pool.task_count(), pool.work() >= kSmallestParallelWork,
            [&](int64_t task) { pool.run(task); });
}

void BinaryMaxPool::infer_shape(FunctionTable api, ShapeInferContext* context) {
  infer_image_output(api, context, false, -1, kOutput);
}

}  // namespace onnxcomp::ort
