#include <string>
#include <vector>

#include "onnxruntime/sparse_int8_layer.h"
#include "onnxruntime/sparse_int8_ops.h"
#include "sparse_int8/conv.h"
#include "sparse_int8/dispatch.h"

namespace onnxcomp::ort {
namespace {

using sparse_int8::ConvAxis;
using sparse_int8::ConvShape;

// `read(name, count)` gives an attribute of the node.
template <class Read>
ConvShape read_window(const Read& read) {
  const std::vector<int64_t> taps = read("kernel_shape", size_t{2});
  const std::vector<int64_t> strides = read("strides", size_t{2});
  const std::vector<int64_t> dilations = read("dilations", size_t{2});
  const std::vector<int64_t> pads = read("pads", size_t{4});
  const ConvShape window{ConvAxis{taps[0], strides[0], dilations[0], pads[0], pads[2]},
                         ConvAxis{taps[1], strides[1], dilations[1], pads[1], pads[3]}};
  const std::string defect = find_defect(window);
  if (!defect.empty()) throw InvalidArgument(defect);
  return window;
}

// What becomes of a size: -1 where it is neither known nor left as it is.
void infer_size(const ConvAxis& axis, SymbolicShape& shape, size_t at) {
  if (shape.sizes[at] >= 0) {
    shape.sizes[at] = axis.outputs(shape.sizes[at]);
    return;
  }
  const int64_t padding = axis.pad_before + axis.pad_after;
  if (axis.stride != 1 || padding != axis.dilation * (axis.taps - 1)) shape.names[at] = "";
}

}  // namespace

template <ElementType kResult>
auto SparseInt8Conv<kResult>::create(FunctionTable api, const KernelInfo* info)
    -> std::unique_ptr<Kernel> {
  constexpr bool kToCodes = kResult == ElementType::kUInt8;
  const ConvShape window = read_window(
      [&](const char* name, size_t count) { return ints_attribute(api, info, name, count); });
  const int64_t positions = window.rows.taps * window.columns.taps;
  const int64_t groups = int_attribute(api, info, "group");
  return std::unique_ptr<Kernel>(
      new Kernel{api, read_sparse_int8_layer(api, info, positions, groups, kToCodes), window});
}

template <ElementType kResult>
void SparseInt8Conv<kResult>::compute(const Kernel& op, KernelContext* context) {
  constexpr bool kToCodes = kResult == ElementType::kUInt8;
  const sparse_int8::PackedWeights& weights = op.layer.weights();
  const TensorView x = input(op.api, context, kX);
  const int64_t channels = weights.groups * weights.in_channels;
  if (x.shape.size() != 4 || x.shape[1] != channels)
    throw InvalidArgument("X has shape " + describe(x.shape) + ", expected uint8 [images, " +
                          std::to_string(channels) + ", height, width]");
  const std::vector<int64_t> shape = {x.shape[0], weights.out_channels,
                                      op.window.rows.outputs(x.shape[2]),
                                      op.window.columns.outputs(x.shape[3])};
  if (shape[2] < 1 || shape[3] < 1)
    throw InvalidArgument("X has shape " + describe(x.shape) +
                          ", which is smaller than the kernel");
  void* y = output(op.api, context, shape);
  if (shape[0] == 0) return;
  BorrowedScratch scratch;
  const sparse_int8::Conv conv(
      *sparse_int8::find_kernel("auto"), op.layer, op.window, scratch.get(),
      static_cast<const uint8_t*>(x.data), x.shape[0], x.shape[2], x.shape[3],
      kToCodes ? static_cast<uint8_t*>(y) : nullptr, kToCodes ? nullptr : static_cast<float*>(y));
  run_sparse_int8(op.api, context, conv);
}

template <ElementType kResult>
void SparseInt8Conv<kResult>::infer_shape(FunctionTable api, ShapeInferContext* context) {
  SymbolicShape shape = input_shape(api, context, kX);
  if (shape.sizes.size() != 4) return;
  const ConvShape window = read_window(
      [&](const char* name, size_t count) { return shape_attribute(api, context, name, count); });
  infer_size(window.rows, shape, 2);
  infer_size(window.columns, shape, 3);
  shape.sizes[1] = shape_attribute(api, context, "out_channels", 1)[0];
  shape.names[1] = "";
  set_output_shape(api, context, shape, kResult);
}

template struct SparseInt8Conv<ElementType::kUInt8>;
template struct SparseInt8Conv<ElementType::kFloat>;

}  // namespace onnxcomp::ort
