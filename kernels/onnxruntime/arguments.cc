#include "onnxruntime/arguments.h"

namespace onnxcomp::ort {
namespace {

const char* type_name(ElementType type) {
  switch (type) {
    case ElementType::kFloat: return "float32";
    case ElementType::kUInt8: return "uint8";
    case ElementType::kInt8: return "int8";
    case ElementType::kInt32: return "int32";
    case ElementType::kInt64: return "int64";
    case ElementType::kUInt64: return "uint64";
    default: return "another type";
  }
}

// `read(text, size)` copies a name, or only says its size, with the zero at the end, to null.
template <class Read>
std::string read_name(FunctionTable api, const Read& read) {
  size_t size = 0;
  check(api, read(nullptr, &size));
  if (size < 2) return {};
  std::string name(size, '\0');
  check(api, read(name.data(), &size));
  name.pop_back();
  return name;
}

}  // namespace

std::string described_node(FunctionTable api, const KernelInfo* info) {
  const std::string name = read_name(api, [&](char* text, size_t* size) {
    return GetNodeName::call(api, info, text, size);
  });
  if (!name.empty()) return " '" + name + "'";
  return " that makes '" + read_name(api, [&](char* text, size_t* size) {
           return GetOutputName::call(api, info, 0, text, size);
         }) + "'";
}

int64_t int_attribute(FunctionTable api, const KernelInfo* info, const char* name) {
  int64_t value = 0;
  Status* status = GetAttributeInt::call(api, info, name, &value);
  if (status == nullptr) return value;
  ReleaseStatus::call(api, status);
  throw InvalidArgument(std::string("the integer attribute ") + name + " is missing");
}

size_t ints_count(FunctionTable api, const KernelInfo* info, const char* name) {
  size_t found = 0;
  Status* status = GetAttributeInts::call(api, info, name, nullptr, &found);
  if (status == nullptr) return found;
  ReleaseStatus::call(api, status);
  throw InvalidArgument(std::string("the attribute ") + name + ", a list of integers, is missing");
}

std::vector<int64_t> ints_attribute(FunctionTable api, const KernelInfo* info, const char* name,
                                    size_t count) {
  size_t found = ints_count(api, info, name);
  if (found != count)
    throw InvalidArgument(std::string(name) + " has " + std::to_string(found) + " numbers, expected " +
                          std::to_string(count));
  std::vector<int64_t> numbers(count);
  check(api, GetAttributeInts::call(api, info, name, numbers.data(), &found));
  return numbers;
}

void check_format_version(FunctionTable api, const KernelInfo* info, int64_t supported) {
  const int64_t version = int_attribute(api, info, "format_version");
  if (version == supported) return;
  throw InvalidArgument("format_version is " + std::to_string(version) + "; this library reads " +
                        std::to_string(supported));
}

TensorView constant_input(FunctionTable api, const KernelInfo* info, size_t input, const char* name,
                          ElementType type, size_t rank) {
  int is_constant = 0;
  const Value* value = nullptr;
  check(api, GetConstantInput::call(api, info, input, &is_constant, &value));
  if (is_constant == 0 || value == nullptr)
    throw InvalidArgument(std::string(name) + " must be an initializer that no input overrides");
  const TensorView tensor = view(api, value);
  if (tensor.type != type)
    throw InvalidArgument(std::string(name) + " has type " + type_name(tensor.type) +
                          ", expected " + type_name(type));
  if (tensor.shape.size() != rank)
    throw InvalidArgument(std::string(name) + " has shape " + describe(tensor.shape) +
                          ", expected rank " + std::to_string(rank));
  return tensor;
}

bool has_input(FunctionTable api, const KernelContext* context, size_t input) {
  size_t inputs = 0;
  check(api, GetInputCount::call(api, context, &inputs));
  if (inputs <= input) return false;
  const Value* value = nullptr;
  check(api, GetInput::call(api, context, input, &value));
  return value != nullptr;
}

TensorView input(FunctionTable api, const KernelContext* context, size_t input) {
  const Value* value = nullptr;
  check(api, GetInput::call(api, context, input, &value));
  return view(api, value);
}

TensorView channel_input(FunctionTable api, const KernelContext* context, size_t input,
                          const char* name, ElementType type, int64_t count) {
  if (!has_input(api, context, input)) return {};
  TensorView tensor = ort::input(api, context, input);
  if (tensor.type != type || tensor.shape != std::vector{count})
    throw InvalidArgument(std::string(name) + " has shape " + describe(tensor.shape) + ", expected " +
                          type_name(type) + " [" + std::to_string(count) + "]");
  return tensor;
}

void* output(FunctionTable api, KernelContext* context, const std::vector<int64_t>& shape) {
  Value* value = nullptr;
  check(api, GetOutput::call(api, context, 0, shape.data(), shape.size(), &value));
  void* data = nullptr;
  check(api, GetTensorMutableData::call(api, value, &data));
  return data;
}

SymbolicShape input_shape(FunctionTable api, const ShapeInferContext* context, size_t input) {
  TensorInfo* info = nullptr;  // onnxruntime's own: not released here
  check(api, GetInputShape::call(api, context, input, &info));
  SymbolicShape shape;
  shape.sizes = shape_of(api, info);
  shape.names.assign(shape.sizes.size(), "");
  if (!shape.sizes.empty())
    check(api, GetSymbolicDimensions::call(api, info, shape.names.data(), shape.names.size()));
  return shape;
}

namespace {

// `count` integers of one attribute.
void read_shape_attribute(FunctionTable api, const ShapeInferContext* context, const char* name,
                          AttributeType type, int64_t* numbers, size_t count) {
  const OpAttribute* attribute = nullptr;
  Status* status = GetShapeAttribute::call(api, context, name, &attribute);
  if (status != nullptr) {
    ReleaseStatus::call(api, status);
    throw InvalidArgument(std::string("the attribute ") + name + " is missing");
  }
  const size_t room = count * sizeof(int64_t);
  size_t bytes = 0;
  check(api, ReadAttribute::call(api, attribute, type, numbers, room, &bytes));
  if (bytes != room)
    throw InvalidArgument(std::string(name) + " has another number of integers than " +
                          std::to_string(count));
}

}  // namespace

int64_t shape_attribute(FunctionTable api, const ShapeInferContext* context, const char* name) {
  int64_t number = 0;
  read_shape_attribute(api, context, name, AttributeType::kInt, &number, 1);
  return number;
}

std::vector<int64_t> shape_ints(FunctionTable api, const ShapeInferContext* context,
                                const char* name, size_t count) {
  std::vector<int64_t> numbers(count);
  read_shape_attribute(api, context, name, AttributeType::kInts, numbers.data(), count);
  return numbers;
}

void set_output_shape(FunctionTable api, ShapeInferContext* context, const SymbolicShape& shape,
                      ElementType type) {
  for (size_t axis = 0; axis < shape.sizes.size(); ++axis) {
    if (shape.sizes[axis] < 0 && shape.names[axis][0] == '\0') return;
  }
  std::vector<const char*> names = shape.names;
  TensorInfo* info = nullptr;
  check(api, CreateTensorInfo::call(api, &info));
  Status* failure = SetElementType::call(api, info, type);
  if (failure == nullptr)
    failure = SetDimensions::call(api, info, shape.sizes.data(), shape.sizes.size());
  if (failure == nullptr)
    failure = SetSymbolicDimensions::call(api, info, names.data(), names.size());
  if (failure == nullptr) failure = SetOutputShape::call(api, context, 0, info);
  ReleaseTensorInfo::call(api, info);
  check(api, failure);
}

}  // namespace onnxcomp::ort
