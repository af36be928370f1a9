#pragma once

#include "onnxruntime/abi.h"

namespace onnxcomp::ort {

// onnxcomp.SparseMatMul(X, values, indices, offsets, bias?) -> Y; docs/kernels.md has its contract.
struct SparseMatMulOp : CustomOp {
  explicit SparseMatMulOp(FunctionTable table);

  FunctionTable api;
};

}  // namespace onnxcomp::ort
