#include <string>
#include <vector>

#include "onnxruntime/arena.h"
#include "onnxruntime/sparse_int8_layer.h"
#include "onnxruntime/sparse_int8_ops.h"
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
  if (x.shape.empty() || x.shape.back() != weights.in_channels)
    throw InvalidArgument("X has shape " + describe(x.shape) + ", expected uint8 [..., " +
                          std::to_string(weights.in_channels) + "]");
  std::vector<int64_t> shape = x.shape;
  shape.back() = weights.out_channels;
  int64_t tokens = 1;
  for (size_t axis = 0; axis + 1 < shape.size(); ++axis) tokens *= shape[axis];
  void* y = output(op.api, context, shape);
  if (tokens == 0) return;
  Arena arena(op.api, context);
  Scratch scratch(arena);
  const sparse_int8::MatMul matmul(*sparse_int8::find_kernel("auto"), op.layer, scratch,
                                   static_cast<const uint8_t*>(x.data), tokens,
                                   kToCodes ? static_cast<uint8_t*>(y) : nullptr,
                                   kToCodes ? nullptr : static_cast<float*>(y));
  run_product(op.api, context, matmul);
}

// Y has the shape of X but for its last dimension.
template <ElementType kResult>
void SparseInt8MatMul<kResult>::infer_shape(FunctionTable api, ShapeInferContext* context) {
  SymbolicShape shape = input_shape(api, context, kX);
  if (shape.sizes.empty()) return;  // unknown rank looks like this
  shape.sizes.back() = shape_attribute(api, context, "out_channels");
  shape.names.back() = "";
  set_output_shape(api, context, shape, kResult);
}

template struct SparseInt8MatMul<ElementType::kUInt8>;
template struct SparseInt8MatMul<ElementType::kFloat>;

}  // namespace onnxcomp::ort
