#include "onnxruntime/sparse_matmul_op.h"

#include <vector>

#include "onnxruntime/arena.h"
#include "onnxruntime/sparse_weights.h"
#include "sparse/matmul.h"

namespace onnxcomp::ort {
namespace {

// Fewer multiply-adds than this take less time than waking a thread.
constexpr int64_t kSmallestParallelWork = int64_t{1} << 18;

}  // namespace

std::unique_ptr<SparseMatMul::Kernel> SparseMatMul::create(FunctionTable api,
                                                           const KernelInfo* info) {
  const int64_t in_features = int_attribute(api, info, "in_features");
  const int64_t out_features = int_attribute(api, info, "out_features");
  auto op = std::make_unique<Kernel>();
  op->api = api;
  op->weights = read_sparse_weights(api, info, in_features, out_features, 1, &op->copies);
  return op;
}

void SparseMatMul::compute(const Kernel& op, KernelContext* context) {
  const TensorView x = input(op.api, context, kX);
  if (x.shape.empty() || x.shape.back() != op.weights.in_features)
    throw InvalidArgument("X has shape " + describe(x.shape) + ", expected float32 [..., " +
                          std::to_string(op.weights.in_features) + "]");
  const TensorView bias = channel_input(op.api, context, kBias, "bias", ElementType::kFloat,
                                        op.weights.out_features);
  std::vector<int64_t> shape = x.shape;
  shape.back() = op.weights.out_features;
  int64_t tokens = 1;
  for (size_t axis = 0; axis + 1 < shape.size(); ++axis) tokens *= shape[axis];
  void* y = output(op.api, context, shape);
  if (tokens == 0) return;
  Arena arena(op.api, context);
  Scratch scratch(arena);
  const sparse::MatMul matmul(*sparse::find_kernel("auto"), op.weights,
                              static_cast<const float*>(bias.data), scratch,
                              static_cast<const float*>(x.data), tokens, static_cast<float*>(y));
  run_product(op.api, context, matmul, kSmallestParallelWork);
}

// Y has the shape of X but for its last dimension.
void SparseMatMul::infer_shape(FunctionTable api, ShapeInferContext* context) {
  SymbolicShape shape = input_shape(api, context, kX);
  if (shape.sizes.empty()) return;  // unknown rank looks like this
  shape.sizes.back() = shape_attribute(api, context, "out_features");
  shape.names.back() = "";
  set_output_shape(api, context, shape, kOutput);
}

}  // namespace onnxcomp::ort
