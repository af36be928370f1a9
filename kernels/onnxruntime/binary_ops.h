#pragma once

#include <memory>
#include <vector>

#include "binary/planes.h"
#include "onnxruntime/operator.h"

// Layers of signs; docs/binary.md has their contracts.

namespace onnxcomp::ort {

// onnxcomp.PackSigns(X, thresholds?) -> bits
struct PackSigns {
  static constexpr const char* kName = "onnxcomp.PackSigns";
  static constexpr const char* kOperator = "PackSigns";
  static constexpr InputType kInputs[] = {{ElementType::kFloat, Characteristic::kRequired},
                                          {ElementType::kFloat, Characteristic::kOptional}};
  static constexpr ElementType kOutput = ElementType::kUInt64;
  struct Kernel {
    FunctionTable api;
    binary::Comparison comparison;
  };
  static std::unique_ptr<Kernel> create(FunctionTable api, const KernelInfo* info);
  static void compute(const Kernel& op, KernelContext* context);
  static void infer_shape(FunctionTable api, ShapeInferContext* context);
};

// onnxcomp.BinaryMaxPool(bits) -> bits
struct BinaryMaxPool {
  static constexpr const char* kName = "onnxcomp.BinaryMaxPool";
  static constexpr const char* kOperator = "BinaryMaxPool";
  static constexpr InputType kInputs[] = {{ElementType::kUInt64, Characteristic::kRequired}};
  static constexpr ElementType kOutput = ElementType::kUInt64;
  struct Kernel {
    FunctionTable api;
    binary::Window window;
  };
  static std::unique_ptr<Kernel> create(FunctionTable api, const KernelInfo* info);
  static void compute(const Kernel& op, KernelContext* context);
  static void infer_shape(FunctionTable api, ShapeInferContext* context);
};

struct ConvKernel {
  FunctionTable api;
  binary::ConvWeights weights;
  Copy copy;  // that the weights point to, if any
  std::vector<int32_t> position_sums;
};

// onnxcomp.BinaryConv(bits, weight, scale?, bias?) -> Y
struct BinaryConv {
  static constexpr const char* kName = "onnxcomp.BinaryConv";
  static constexpr const char* kOperator = "BinaryConv";
  static constexpr InputType kInputs[] = {{ElementType::kUInt64, Characteristic::kRequired},
                                          {ElementType::kUInt64, Characteristic::kRequired},
                                          {ElementType::kFloat, Characteristic::kOptional},
                                          {ElementType::kFloat, Characteristic::kOptional}};
  static constexpr ElementType kOutput = ElementType::kFloat;
  using Kernel = ConvKernel;
  static std::unique_ptr<Kernel> create(FunctionTable api, const KernelInfo* info);
  static void compute(const Kernel& op, KernelContext* context);
  static void infer_shape(FunctionTable api, ShapeInferContext* context);
};

// onnxcomp.BinaryConvSigns(bits, weight, thresholds) -> bits
struct BinaryConvSigns {
  static constexpr const char* kName = "onnxcomp.BinaryConvSigns";
  static constexpr const char* kOperator = "BinaryConvSigns";
  static constexpr InputType kInputs[] = {{ElementType::kUInt64, Characteristic::kRequired},
                                          {ElementType::kUInt64, Characteristic::kRequired},
                                          {ElementType::kInt32, Characteristic::kRequired}};
  static constexpr ElementType kOutput = ElementType::kUInt64;
  using Kernel = ConvKernel;
  static std::unique_ptr<Kernel> create(FunctionTable api, const KernelInfo* info);
  static void compute(const Kernel& op, KernelContext* context);
  static void infer_shape(FunctionTable api, ShapeInferContext* context);
};

struct GemmKernel {
  FunctionTable api;
  binary::GemmWeights weights;
  Copy copy;
};

// onnxcomp.BinaryGemm(bits, weight, scale?, bias?) -> Y
struct BinaryGemm {
  static constexpr const char* kName = "onnxcomp.BinaryGemm";
  static constexpr const char* kOperator = "BinaryGemm";
  static constexpr auto& kInputs = BinaryConv::kInputs;
  static constexpr ElementType kOutput = ElementType::kFloat;
  using Kernel = GemmKernel;
  static std::unique_ptr<Kernel> create(FunctionTable api, const KernelInfo* info);
  static void compute(const Kernel& op, KernelContext* context);
  static void infer_shape(FunctionTable api, ShapeInferContext* context);
};

// onnxcomp.BinaryGemmSigns(bits, weight, thresholds) -> bits
struct BinaryGemmSigns {
  static constexpr const char* kName = "onnxcomp.BinaryGemmSigns";
  static constexpr const char* kOperator = "BinaryGemmSigns";
  static constexpr auto& kInputs = BinaryConvSigns::kInputs;
  static constexpr ElementType kOutput = ElementType::kUInt64;
  using Kernel = GemmKernel;
  static std::unique_ptr<Kernel> create(FunctionTable api, const KernelInfo* info);
  static void compute(const Kernel& op, KernelContext* context);
  static void infer_shape(FunctionTable api, ShapeInferContext* context);
};

}  // namespace onnxcomp::ort
