#pragma once

#include <memory>
#include <vector>

#include "onnxruntime/conv_window.h"
#include "onnxruntime/operator.h"
#include "sparse_int8/layer.h"

// Layers of sparse int8 weights; docs/kernels.md has their contracts.

namespace onnxcomp::ort {

// X, values, indices, offsets, scale, bias?
inline constexpr InputType kSparseInt8Inputs[] = {{ElementType::kUInt8, Characteristic::kRequired},
                                                  {ElementType::kInt8, Characteristic::kRequired},
                                                  {ElementType::kInt32, Characteristic::kRequired},
                                                  {ElementType::kInt32, Characteristic::kRequired},
                                                  {ElementType::kFloat, Characteristic::kRequired},
                                                  {ElementType::kInt32, Characteristic::kOptional}};

// What both results of a layer share; `kOutput` says whether they are codes.
template <ElementType kResult>
struct SparseInt8MatMul {
  static constexpr auto& kInputs = kSparseInt8Inputs;
  static constexpr ElementType kOutput = kResult;
  struct Kernel {
    FunctionTable api;
    std::vector<Copy> copies;  // that the layer points to, if any
    sparse_int8::Layer layer;
  };
  static std::unique_ptr<Kernel> create(FunctionTable api, const KernelInfo* info);
  static void compute(const Kernel& op, KernelContext* context);
  static void infer_shape(FunctionTable api, ShapeInferContext* context);
};

template <ElementType kResult>
struct SparseInt8Conv {
  static constexpr auto& kInputs = kSparseInt8Inputs;
  static constexpr ElementType kOutput = kResult;
  struct Kernel {
    FunctionTable api;
    std::vector<Copy> copies;  // that the layer points to, if any
    sparse_int8::Layer layer;
    ConvWindow window;
  };
  static std::unique_ptr<Kernel> create(FunctionTable api, const KernelInfo* info);
  static void compute(const Kernel& op, KernelContext* context);
  static void infer_shape(FunctionTable api, ShapeInferContext* context);
};

struct SparseQLinearMatMul : SparseInt8MatMul<ElementType::kUInt8> {
  static constexpr const char* kName = "onnxcomp.SparseQLinearMatMul";
  static constexpr const char* kOperator = "SparseQLinearMatMul";
};

struct SparseMatMulIntegerToFloat : SparseInt8MatMul<ElementType::kFloat> {
  static constexpr const char* kName = "onnxcomp.SparseMatMulIntegerToFloat";
  static constexpr const char* kOperator = "SparseMatMulIntegerToFloat";
};

struct SparseQLinearConv : SparseInt8Conv<ElementType::kUInt8> {
  static constexpr const char* kName = "onnxcomp.SparseQLinearConv";
  static constexpr const char* kOperator = "SparseQLinearConv";
};

struct SparseConvIntegerToFloat : SparseInt8Conv<ElementType::kFloat> {
  static constexpr const char* kName = "onnxcomp.SparseConvIntegerToFloat";
  static constexpr const char* kOperator = "SparseConvIntegerToFloat";
};

}  // namespace onnxcomp::ort
