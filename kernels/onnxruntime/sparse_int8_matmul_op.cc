#include <utility>
#include <vector>

#include "onnxruntime/arena.h"
#include "onnxruntime/sparse_int8_layer.h"
#include "onnxruntime/sparse_int8_ops.h"
#include "onnxruntime/tokens.h"
#include "sparse_int8/dispatch.h"
#include "sparse_int8/matmul.h"

namespace onnxcomp::ort {

template <ElementType kResult>
auto SparseInt8MatMul<kResult>::create(FunctionTable api, const KernelInfo* info)
    -> std::unique_ptr<Kernel> {
  constexpr bool kToCodes = kResult == ElementType::kUInt8;
  std::vector<Copy> copies;
  sparse_int8::Layer layer = read_sparse_int8_layer(api, info, 1, 1, kToCodes, &copies);
  return std::unique_ptr<Kernel>(new Kernel{api, std::move(copies), std::move(layer)});
}

template <ElementType kResult>
void SparseInt8MatMul<kResult>::compute(const Kernel& op, KernelContext* context) {
  constexpr bool kToCodes = kResult == ElementType::kUInt8;
  const sparse_int8::PackedWeights& weights = op.layer.weights();
  const TensorView x = input(op.api, context, kX);
  const Tokens tokens = tokens_of(x.shape, "uint8", weights.in_channels, weights.out_channels);
  void* y = output(op.api, context, tokens.output);
  if (tokens.count == 0) return;
  Arena arena(op.api, context);
  Scratch scratch(arena);
  const sparse_int8::MatMul matmul(*sparse_int8::find_kernel("auto"), op.layer, scratch,
                                   static_cast<const uint8_t*>(x.data), tokens.count,
                                   kToCodes ? static_cast<uint8_t*>(y) : nullptr,
                                   kToCodes ? nullptr : static_cast<float*>(y));
  run_product(op.api, context, matmul);
}

template <ElementType kResult>
void SparseInt8MatMul<kResult>::infer_shape(FunctionTable api, ShapeInferContext* context) {
  infer_token_output(api, context, "out_channels", kResult);
}

template struct SparseInt8MatMul<ElementType::kUInt8>;
template struct SparseInt8MatMul<ElementType::kFloat>;

}  // namespace onnxcomp::ort
