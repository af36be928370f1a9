#include "onnxruntime/sparse_conv_op.h"

#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "onnxruntime/arena.h"
#include "onnxruntime/conv_window.h"
#include "onnxruntime/sparse_weights.h"
#include "sparse/conv.h"
#include "sparse/matmul.h"

namespace onnxcomp::ort {
namespace {

// What is less becomes this.
float lowest(FunctionTable api, const KernelInfo* info) {
  const int64_t relu = int_attribute(api, info, "relu");
  if (relu != 0 && relu != 1)
    throw InvalidArgument("relu is " + std::to_string(relu) + ", expected 0 or 1");
  return relu == 1 ? 0.0f : -std::numeric_limits<float>::infinity();
}

}  // namespace

std::unique_ptr<SparseConv::Kernel> SparseConv::create(FunctionTable api, const KernelInfo* info) {
  const ConvWindow window = conv_window(api, info);
  const int64_t in_channels = int_attribute(api, info, "in_channels");
  refuse(sparse::find_channel_defect(in_channels, window.shape.positions()));
  const int64_t out_channels = int_attribute(api, info, "out_channels");
  std::vector<Copy> copies;
  const sparse::PackedWeights weights =
      read_sparse_weights(api, info, in_channels * window.shape.positions(), out_channels,
                          int_attribute(api, info, "group"), &copies);
  return std::unique_ptr<Kernel>(
      new Kernel{api, weights, std::move(copies), window, lowest(api, info)});
}

void SparseConv::compute(const Kernel& op, KernelContext* context) {
  const sparse::PackedWeights& weights = op.weights;
  const TensorView x = input(op.api, context, kX);
  const int64_t channels = weights.groups * (weights.in_features / op.window.shape.positions());
  const ConvImages images =
      conv_images(op.window, x.shape, "float32", channels, weights.out_features);
  const TensorView bias =
      channel_input(op.api, context, kBias, "bias", ElementType::kFloat, weights.out_features);
  void* y = output(op.api, context, images.output);
  if (images.count == 0) return;
  Arena arena(op.api, context);
  Scratch scratch(arena);
  const sparse::Conv conv(*sparse::find_kernel("auto"), weights,
                          static_cast<const float*>(bias.data), op.low, op.window.shape, scratch,
                          static_cast<const float*>(x.data), images.count, images.height,
                          images.width, static_cast<float*>(y));
  run_filled_product(op.api, context, conv);
}

void SparseConv::infer_shape(FunctionTable api, ShapeInferContext* context) {
  infer_conv_output(api, context, kOutput);
}

}  // namespace onnxcomp::ort
