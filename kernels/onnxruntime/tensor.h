#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "onnxruntime/abi.h"

namespace onnxcomp::ort {

// Numbers that began at an address that is none for them, as external data may: copies of theirs.
using Copy = std::shared_ptr<void>;

// A dense tensor of onnxruntime's, looked at; the memory stays its owner's, unless there is a copy.
struct TensorView {
  ElementType type;
  std::vector<int64_t> shape;
  void* data;
  Copy copy;
};

TensorView view(FunctionTable api, const Value* value);

std::vector<int64_t> shape_of(FunctionTable api, const TensorInfo* info);

// "[2, 3, 4]"
std::string describe(const std::vector<int64_t>& shape);

}  // namespace onnxcomp::ort
