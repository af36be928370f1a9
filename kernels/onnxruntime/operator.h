#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "onnxruntime/abi.h"
#include "onnxruntime/arguments.h"
#include "onnxruntime/errors.h"

namespace onnxcomp::ort {

struct InputType {
  ElementType type;
  Characteristic characteristic;
};

// The callbacks of an operator with one output, made of what differs between operators:
//   kName, with the domain, and kOperator, without it; kInputs, an array of InputType; kOutput, an ElementType
//   Kernel, with a member `api`
//   create(api, info) -> std::unique_ptr<Kernel>, compute(kernel, context), infer_shape(api, context)
template <class Definition>
struct Operator : CustomOp {
  explicit Operator(FunctionTable table) : api(table) {
    get_name = [](const CustomOp*) { return Definition::kOperator; };
    get_execution_provider = [](const CustomOp*) -> const char* { return nullptr; };  // CPU
    get_input_type = [](const CustomOp*, size_t input) { return Definition::kInputs[input].type; };
    get_input_count = [](const CustomOp*) -> size_t { return std::size(Definition::kInputs); };
    get_output_type = [](const CustomOp*, size_t) { return Definition::kOutput; };
    get_output_count = [](const CustomOp*) -> size_t { return 1; };
    destroy_kernel = [](void* kernel) { delete static_cast<Node*>(kernel); };
    get_input_characteristic = [](const CustomOp*, size_t input) {
      return Definition::kInputs[input].characteristic;
    };
    get_output_characteristic = [](const CustomOp*, size_t) { return Characteristic::kRequired; };
    get_input_memory_type = [](const CustomOp*, size_t) { return MemoryType::kDefault; };
    create_kernel_v2 = make_kernel;
    compute_v2 = run_kernel;
    infer_output_shape = infer_output;
    get_start_version = [](const CustomOp*) { return 1; };
    get_end_version = [](const CustomOp*) { return INT32_MAX; };
  }

  FunctionTable api;

 private:
  // What onnxruntime keeps for a node. Its errors name it: a model has many of an operator.
  struct Node {
    FunctionTable api;
    std::string name;
    std::unique_ptr<typename Definition::Kernel> kernel;
  };

  static Status* make_kernel(const CustomOp*, FunctionTable api, const KernelInfo* info,
                             void** kernel) {
    std::string name;
    return returning_status(api, Definition::kName, name, [&] {
      name = described_node(api, info);
      auto made = Definition::create(api, info);
      *kernel = new Node{api, name, std::move(made)};
    });
  }
  static Status* run_kernel(void* kernel, KernelContext* context) {
    const Node& node = *static_cast<const Node*>(kernel);
    return returning_status(node.api, Definition::kName, node.name,
                            [&] { Definition::compute(*node.kernel, context); });
  }
  // onnxruntime adds the node's name to what is said here.
  static Status* infer_output(const CustomOp* op, ShapeInferContext* context) {
    const FunctionTable api = static_cast<const Operator*>(op)->api;
    return returning_status(api, Definition::kName, std::string(),
                            [&] { Definition::infer_shape(api, context); });
  }
};

}  // namespace onnxcomp::ort
