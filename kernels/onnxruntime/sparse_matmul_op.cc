#include "onnxruntime/sparse_matmul_op.h"

#include <memory>
#include <string>
#include <vector>

#include "onnxruntime/errors.h"
#include "onnxruntime/tensor.h"
#include "sparse/matmul.h"

namespace onnxcomp::ort {
namespace {

constexpr const char* kName = "onnxcomp.SparseMatMul";

enum Input : size_t { kX, kValues, kIndices, kOffsets, kBias, kInputCount };

// Fewer multiply-adds than this take less time than waking a thread.
constexpr int64_t kSmallestParallelWork = int64_t{1} << 18;

struct SparseMatMul {
  FunctionTable api;
  const sparse::Kernel* kernel;
  sparse::PackedWeights weights;
};

int64_t attribute(FunctionTable api, const KernelInfo* info, const char* name) {
  int64_t value = 0;
  Status* status = GetAttributeInt::call(api, info, name, &value);
  if (status == nullptr) return value;
  ReleaseStatus::call(api, status);
  throw InvalidArgument(std::string("the integer attribute ") + name + " is missing");
}

TensorView constant_input(FunctionTable api, const KernelInfo* info, Input input,
                          const char* name, ElementType type, size_t rank) {
  int is_constant = 0;
  const Value* value = nullptr;
  check(api, GetConstantInput::call(api, info, input, &is_constant, &value));
  if (is_constant == 0 || value == nullptr)
    throw InvalidArgument(std::string(name) + " must be an initializer that no input overrides");
  const TensorView tensor = view(api, value);
  if (tensor.type != type)
    throw InvalidArgument(std::string(name) + " has element type " +
                          std::to_string(static_cast<int>(tensor.type)) + ", expected " +
                          std::to_string(static_cast<int>(type)));
  if (tensor.shape.size() != rank)
    throw InvalidArgument(std::string(name) + " has shape " + describe(tensor.shape) +
                          ", expected rank " + std::to_string(rank));
  return tensor;
}

std::unique_ptr<SparseMatMul> create(FunctionTable api, const KernelInfo* info) {
  const int64_t version = attribute(api, info, "format_version");
  if (version != sparse::kFormatVersion)
    throw InvalidArgument("format_version is " + std::to_string(version) +
                          "; this library reads " + std::to_string(sparse::kFormatVersion));
  const TensorView values = constant_input(api, info, kValues, "values", ElementType::kFloat, 2);
  const TensorView indices = constant_input(api, info, kIndices, "indices", ElementType::kInt32, 1);
  const TensorView offsets = constant_input(api, info, kOffsets, "offsets", ElementType::kInt32, 1);

  auto op = std::make_unique<SparseMatMul>();
  op->api = api;
  op->kernel = sparse::find_kernel("auto");
  op->weights.values = static_cast<const float*>(values.data);
  op->weights.indices = static_cast<const int32_t*>(indices.data);
  op->weights.offsets = static_cast<const int32_t*>(offsets.data);
  op->weights.in_features = attribute(api, info, "in_features");
  op->weights.out_features = attribute(api, info, "out_features");
  op->weights.block_size = attribute(api, info, "block_size");
  const std::string defect =
      sparse::find_defect(op->weights, {values.shape[0] * values.shape[1], indices.shape[0],
                                        offsets.shape[0]});
  if (!defect.empty()) throw InvalidArgument(defect);
  return op;
}

const float* bias_of(const SparseMatMul& op, KernelContext* context) {
  size_t count = 0;
  check(op.api, GetInputCount::call(op.api, context, &count));
  if (count <= kBias) return nullptr;
  const Value* value = nullptr;
  check(op.api, GetInput::call(op.api, context, kBias, &value));
  if (value == nullptr) return nullptr;
  const TensorView bias = view(op.api, value);
  if (bias.type != ElementType::kFloat || bias.shape != std::vector{op.weights.out_features})
    throw InvalidArgument("bias has shape " + describe(bias.shape) + ", expected float32 [" +
                          std::to_string(op.weights.out_features) + "]");
  return static_cast<const float*>(bias.data);
}

void run(const SparseMatMul& op, KernelContext* context, const sparse::MatMul& matmul) {
  if (matmul.work() < kSmallestParallelWork) {
    for (int64_t task = 0; task < matmul.fill_task_count(); ++task) matmul.fill(task);
    for (int64_t task = 0; task < matmul.multiply_task_count(); ++task) matmul.multiply(task);
    return;
  }
  const auto fill = [](void* argument, size_t task) {
    static_cast<const sparse::MatMul*>(argument)->fill(static_cast<int64_t>(task));
  };
  const auto multiply = [](void* argument, size_t task) {
    static_cast<const sparse::MatMul*>(argument)->multiply(static_cast<int64_t>(task));
  };
  void* argument = const_cast<sparse::MatMul*>(&matmul);
  check(op.api, ParallelFor::call(op.api, context, fill,
                                  static_cast<size_t>(matmul.fill_task_count()), 0, argument));
  check(op.api, ParallelFor::call(op.api, context, multiply,
                                  static_cast<size_t>(matmul.multiply_task_count()), 0, argument));
}

void compute(const SparseMatMul& op, KernelContext* context) {
  const Value* value = nullptr;
  check(op.api, GetInput::call(op.api, context, kX, &value));
  const TensorView x = view(op.api, value);
  if (x.type != ElementType::kFloat || x.shape.empty() || x.shape.back() != op.weights.in_features)
    throw InvalidArgument("X has shape " + describe(x.shape) + ", expected float32 [..., " +
                          std::to_string(op.weights.in_features) + "]");
  const float* bias = bias_of(op, context);

  std::vector<int64_t> shape = x.shape;
  shape.back() = op.weights.out_features;
  int64_t tokens = 1;
  for (size_t axis = 0; axis + 1 < shape.size(); ++axis) tokens *= shape[axis];
  Value* output = nullptr;
  check(op.api, GetOutput::call(op.api, context, 0, shape.data(), shape.size(), &output));
  if (tokens == 0) return;
  void* y = nullptr;
  check(op.api, GetTensorMutableData::call(op.api, output, &y));
  const sparse::MatMul matmul(*op.kernel, op.weights, bias, static_cast<const float*>(x.data),
                              tokens, static_cast<float*>(y));
  run(op, context, matmul);
}

// Y has the shape of X but for its last dimension. A dimension with neither value nor name cannot be
// passed on: onnxruntime would take -1 for its value, so the model's own value_info is left to speak.
void infer_shape(FunctionTable api, ShapeInferContext* context) {
  TensorInfo* input = nullptr;  // onnxruntime's own: not released here
  check(api, GetInputShape::call(api, context, kX, &input));
  std::vector<int64_t> shape = shape_of(api, input);
  if (shape.empty()) return;  // unknown rank looks like this
  std::vector<const char*> names(shape.size(), "");
  check(api, GetSymbolicDimensions::call(api, input, names.data(), names.size()));
  for (size_t axis = 0; axis + 1 < shape.size(); ++axis) {
    if (shape[axis] < 0 && names[axis][0] == '\0') return;
  }
  const OpAttribute* attribute = nullptr;
  check(api, GetShapeAttribute::call(api, context, "out_features", &attribute));
  size_t bytes_read = 0;
  check(api, ReadAttribute::call(api, attribute, AttributeType::kInt, &shape.back(),
                                 sizeof(int64_t), &bytes_read));
  names.back() = "";
  TensorInfo* output = nullptr;
  check(api, CreateTensorInfo::call(api, &output));
  Status* failure = SetElementType::call(api, output, ElementType::kFloat);
  if (failure == nullptr) failure = SetDimensions::call(api, output, shape.data(), shape.size());
  if (failure == nullptr)
    failure = SetSymbolicDimensions::call(api, output, names.data(), names.size());
  if (failure == nullptr) failure = SetOutputShape::call(api, context, 0, output);
  ReleaseTensorInfo::call(api, output);
  check(api, failure);
}

ElementType input_type(const CustomOp*, size_t input) {
  return input == kIndices || input == kOffsets ? ElementType::kInt32 : ElementType::kFloat;
}

Status* make_kernel(const CustomOp*, FunctionTable api, const KernelInfo* info, void** kernel) {
  return returning_status(api, kName, [&] { *kernel = create(api, info).release(); });
}

Status* run_kernel(void* kernel, KernelContext* context) {
  const auto& op = *static_cast<const SparseMatMul*>(kernel);
  return returning_status(op.api, kName, [&] { compute(op, context); });
}

Status* infer_output(const CustomOp* op, ShapeInferContext* context) {
  const FunctionTable api = static_cast<const SparseMatMulOp*>(op)->api;
  return returning_status(api, kName, [&] { infer_shape(api, context); });
}

}  // namespace

SparseMatMulOp::SparseMatMulOp(FunctionTable table) : api(table) {
  get_name = [](const CustomOp*) { return "SparseMatMul"; };
  get_execution_provider = [](const CustomOp*) -> const char* { return nullptr; };  // CPU
  get_input_type = input_type;
  get_input_count = [](const CustomOp*) -> size_t { return kInputCount; };
  get_output_type = [](const CustomOp*, size_t) { return ElementType::kFloat; };
  get_output_count = [](const CustomOp*) -> size_t { return 1; };
  destroy_kernel = [](void* kernel) { delete static_cast<SparseMatMul*>(kernel); };
  get_input_characteristic = [](const CustomOp*, size_t input) {
    return input == kBias ? Characteristic::kOptional : Characteristic::kRequired;
  };
  get_output_characteristic = [](const CustomOp*, size_t) { return Characteristic::kRequired; };
  get_input_memory_type = [](const CustomOp*, size_t) { return MemoryType::kDefault; };
  create_kernel_v2 = make_kernel;
  compute_v2 = run_kernel;
  infer_output_shape = infer_output;
  get_start_version = [](const CustomOp*) { return 1; };
  get_end_version = [](const CustomOp*) { return INT32_MAX; };
}

}  // namespace onnxcomp::ort
