#pragma once

#include <memory>
#include <vector>

#include "onnxruntime/conv_window.h"
#include "onnxruntime/sparse_matmul_op.h"

namespace onnxcomp::ort {

// onnxcomp.SparseConv(X, values, indices, offsets, bias?) -> Y; docs/kernels.md has its contract.
struct SparseConv {
  static constexpr const char* kName = "onnxcomp.SparseConv";
  static constexpr const char* kOperator = "SparseConv";
  static constexpr auto& kInputs = SparseMatMul::kInputs;
  static constexpr ElementType kOutput = ElementType::kFloat;
  struct Kernel {
    FunctionTable api;
    sparse::PackedWeights weights;
    std::vector<Copy> copies;  // that the weights point to, if any
    ConvWindow window;
    float low;
  };
  static std::unique_ptr<Kernel> create(FunctionTable api, const KernelInfo* info);
  static void compute(const Kernel& op, KernelContext* context);
  static void infer_shape(FunctionTable api, ShapeInferContext* context);
};

}  // namespace onnxcomp::ort
