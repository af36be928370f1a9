#include "onnxruntime/tensor.h"

#include <cstring>
#include <new>

#include "onnxruntime/errors.h"

namespace onnxcomp::ort {

std::vector<int64_t> shape_of(FunctionTable api, const TensorInfo* info) {
  size_t rank = 0;
  check(api, GetDimensionsCount::call(api, info, &rank));
  std::vector<int64_t> shape(rank);
  if (rank > 0) check(api, GetDimensions::call(api, info, shape.data(), rank));
  return shape;
}

namespace {

size_t size_of(ElementType type) {
  switch (type) {
    case ElementType::kFloat:
    case ElementType::kInt32: return 4;
    case ElementType::kInt64:
    case ElementType::kUInt64: return 8;
    default: return 1;
  }
}

void align(TensorView* tensor) {
  const size_t size = size_of(tensor->type);
  if (reinterpret_cast<uintptr_t>(tensor->data) % size == 0) return;
  size_t bytes = size;
  for (const int64_t dimension : tensor->shape) bytes *= static_cast<size_t>(dimension);
  tensor->copy = Copy(::operator new(bytes), [](void* memory) { ::operator delete(memory); });
  std::memcpy(tensor->copy.get(), tensor->data, bytes);
  tensor->data = tensor->copy.get();
}

}  // namespace

TensorView view(FunctionTable api, const Value* value) {
  TensorInfo* info = nullptr;
  check(api, GetTensorInfo::call(api, value, &info));
  TensorView result{};
  try {
    check(api, GetElementType::call(api, info, &result.type));
    result.shape = shape_of(api, info);
  } catch (...) {
    ReleaseTensorInfo::call(api, info);
    throw;
  }
  ReleaseTensorInfo::call(api, info);
  // The interface has no reader's form of this function; nobody here writes through an input.
  check(api, GetTensorMutableData::call(api, const_cast<Value*>(value), &result.data));
  align(&result);
  return result;
}

std::string describe(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t axis = 0; axis < shape.size(); ++axis)
    text += (axis == 0 ? "" : ", ") + std::to_string(shape[axis]);
  return text + "]";
}

}  // namespace onnxcomp::ort
