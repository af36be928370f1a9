#pragma once

#include <memory>
#include <vector>

#include "onnxruntime/operator.h"
#include "sparse/packed_weights.h"

namespace onnxcomp::ort {

// onnxcomp.SparseMatMul(X, values, indices, offsets, bias?) -> Y; docs/kernels.md has its contract.
struct SparseMatMul {
  static constexpr const char* kName = "onnxcomp.SparseMatMul";
  static constexpr const char* kOperator = "SparseMatMul";
  static constexpr InputType kInputs[] = {{ElementType::kFloat, Characteristic::kRequired},
                                          {ElementType::kFloat, Characteristic::kRequired},
                                          {ElementType::kInt32, Characteristic::kRequired},
                                          {ElementType::kInt32, Characteristic::kRequired},
                                          {ElementType::kFloat, Characteristic::kOptional}};
  static constexpr ElementType kOutput = ElementType::kFloat;
  struct Kernel {
    FunctionTable api;
    sparse::PackedWeights weights;
    std::vector<Copy> copies;  // that the weights point to, if any
  };
  static std::unique_ptr<Kernel> create(FunctionTable api, const KernelInfo* info);
  static void compute(const Kernel& op, KernelContext* context);
  static void infer_shape(FunctionTable api, ShapeInferContext* context);
};

}  // namespace onnxcomp::ort
