#include "onnxruntime/arena.h"
#include "onnxruntime/conv_window.h"
#include "onnxruntime/sparse_int8_layer.h"
#include "onnxruntime/sparse_int8_ops.h"
#include "sparse_int8/conv.h"
#include "sparse_int8/dispatch.h"

namespace onnxcomp::ort {

template <ElementType kResult>
auto SparseInt8Conv<kResult>::create(FunctionTable api, const KernelInfo* info)
    -> std::unique_ptr<Kernel> {
  constexpr bool kToCodes = kResult == ElementType::kUInt8;
  const ConvWindow window = conv_window(api, info);
  const int64_t positions = window.shape.positions();
  const int64_t groups = int_attribute(api, info, "group");
  std::vector<Copy> copies;
  sparse_int8::Layer layer =
      read_sparse_int8_layer(api, info, positions, groups, kToCodes, &copies);
  return std::unique_ptr<Kernel>(new Kernel{api, std::move(copies), std::move(layer), window});
}

template <ElementType kResult>
void SparseInt8Conv<kResult>::compute(const Kernel& op, KernelContext* context) {
  constexpr bool kToCodes = kResult == ElementType::kUInt8;
  const sparse_int8::PackedWeights& weights = op.layer.weights();
  const TensorView x = input(op.api, context, kX);
  const ConvImages images =
      conv_images(op.window, x.shape, "uint8", weights.groups * weights.in_channels,
                  weights.out_channels);
  void* y = output(op.api, context, images.output);
  if (images.count == 0) return;
  Arena arena(op.api, context);
  Scratch scratch(arena);
  const sparse_int8::Conv conv(
      *sparse_int8::find_kernel("auto"), op.layer, op.window.shape, scratch,
      static_cast<const uint8_t*>(x.data), images.count, images.height, images.width,
      kToCodes ? static_cast<uint8_t*>(y) : nullptr, kToCodes ? nullptr : static_cast<float*>(y));
  run_product(op.api, context, conv);
}

template <ElementType kResult>
void SparseInt8Conv<kResult>::infer_shape(FunctionTable api, ShapeInferContext* context) {
  infer_conv_output(api, context, kResult);
}

template struct SparseInt8Conv<ElementType::kUInt8>;
template struct SparseInt8Conv<ElementType::kFloat>;

}  // namespace onnxcomp::ort
