#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "onnxruntime/abi.h"

namespace onnxcomp::ort {

// A dense tensor of onnxruntime's, looked at; the memory stays its owner's.
struct TensorView {
  ElementType type;
  std::vector<int64_t> shape;
  void* data;
};

TensorView view(FunctionTable api, const Value* value);

std::vector<int64_t> shape_of(FunctionTable api, const TensorInfo* info);

// "[2, 3, 4]"
std::string describe(const std::vector<int64_t>& shape);

}  // namespace onnxcomp::ort
