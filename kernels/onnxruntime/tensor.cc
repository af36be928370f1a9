#include "onnxruntime/tensor.h"

#include "onnxruntime/errors.h"

namespace onnxcomp::ort {

std::vector<int64_t> shape_of(FunctionTable api, const TensorInfo* info) {
  size_t rank = 0;
  check(api, GetDimensionsCount::call(api, info, &rank));
  std::vector<int64_t> shape(rank);
  if (rank > 0) check(api, GetDimensions::call(api, info, shape.data(), rank));
  return shape;
}

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
  return result;
}

std::string describe(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t axis = 0; axis < shape.size(); ++axis)
    text += (axis == 0 ? "" : ", ") + std::to_string(shape[axis]);
  return text + "]";
}

}  // namespace onnxcomp::ort
