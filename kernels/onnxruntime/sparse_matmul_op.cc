#include "onnxruntime/sparse_matmul_op.h"

#include "onnxruntime/arena.h"
#include "onnxruntime/sparse_weights.h"
#include "onnxruntime/tokens.h"
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
  const Tokens tokens =
      tokens_of(x.shape, "float32", op.weights.in_features, op.weights.out_features);
  const TensorView bias = channel_input(op.api, context, kBias, "bias", ElementType::kFloat,
                                        op.weights.out_features);
  void* y = output(op.api, context, tokens.output);
  if (tokens.count == 0) return;
  Arena arena(op.api, context);
  Scratch scratch(arena);
  const sparse::MatMul matmul(*sparse::find_kernel("auto"), op.weights,
                              static_cast<const float*>(bias.data), scratch,
                              static_cast<const float*>(x.data), tokens.count,
                              static_cast<float*>(y));
  run_product(op.api, context, matmul, kSmallestParallelWork);
}

void SparseMatMul::infer_shape(FunctionTable api, ShapeInferContext* context) {
  infer_token_output(api, context, "out_features", kOutput);
}

}  // namespace onnxcomp::ort
