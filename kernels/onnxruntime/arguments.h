#pragma once

// What an operator asks of its node, and how it runs: the same for all of them.

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "onnxruntime/abi.h"
#include "onnxruntime/errors.h"
#include "onnxruntime/tensor.h"

namespace onnxcomp::ort {

// How errors name a node: " 'layer1/conv'", or " that makes 'y'" where it has no name.
std::string described_node(FunctionTable api, const KernelInfo* info);

// Attributes; all that exist are required.
int64_t int_attribute(FunctionTable api, const KernelInfo* info, const char* name);
// The length of a list of integers.
size_t ints_count(FunctionTable api, const KernelInfo* info, const char* name);
std::vector<int64_t> ints_attribute(FunctionTable api, const KernelInfo* info, const char* name,
                                    size_t count);
// Throws unless the attribute format_version is `supported`.
void check_format_version(FunctionTable api, const KernelInfo* info, int64_t supported);

// An initializer, which stays where it is for as long as the kernel and its copy, if any, live.
TensorView constant_input(FunctionTable api, const KernelInfo* info, size_t input, const char* name,
                          ElementType type, size_t rank);

// Whether an optional input is given.
bool has_input(FunctionTable api, const KernelContext* context, size_t input);
TensorView input(FunctionTable api, const KernelContext* context, size_t input);
// One number for each of `count` channels; its data are null where the optional input is not given.
TensorView channel_input(FunctionTable api, const KernelContext* context, size_t input,
                          const char* name, ElementType type, int64_t count);
void* output(FunctionTable api, KernelContext* context, const std::vector<int64_t>& shape);

// A shape at a time when not all of it is known.
struct SymbolicShape {
  std::vector<int64_t> sizes;      // below 0 where unknown
  std::vector<const char*> names;  // of the unknown ones, "" for none; they are onnxruntime's
};
SymbolicShape input_shape(FunctionTable api, const ShapeInferContext* context, size_t input);
int64_t shape_attribute(FunctionTable api, const ShapeInferContext* context, const char* name);
std::vector<int64_t> shape_ints(FunctionTable api, const ShapeInferContext* context,
                                const char* name, size_t count);
// A dimension with neither value nor name cannot be passed on: onnxruntime would take -1 for its
// value, so the model's own value_info is left to speak.
void set_output_shape(FunctionTable api, ShapeInferContext* context, const SymbolicShape& shape,
                      ElementType type);

// body(task) for every task, on onnxruntime's threads where that pays. The body never throws. Threads
// take one batch of neighbouring tasks after the other, at most `most_batches` of them: enough that
// all are busy to the end, few enough that taking one costs nothing.
template <class Body>
void run_tasks(FunctionTable api, const KernelContext* context, int64_t tasks, bool parallel,
               const Body& body, int64_t most_batches = 64) {
  if (!parallel || tasks < 2) {
    for (int64_t task = 0; task < tasks; ++task) body(task);
    return;
  }
  struct Batches {
    const Body& body;
    int64_t tasks;
    int64_t count;
  } const batches{body, tasks, std::min(tasks, most_batches)};
  const auto run = [](void* argument, size_t index) {
    const auto& [body, tasks, count] = *static_cast<const Batches*>(argument);
    const auto batch = static_cast<int64_t>(index);
    const int64_t size = tasks / count, larger = tasks % count;  // the first ones are larger
    int64_t task = batch * size + std::min(batch, larger);
    for (const int64_t last = task + size + (batch < larger); task < last; ++task) body(task);
  };
  check(api, ParallelFor::call(api, context, run, static_cast<size_t>(batches.count), 0,
                               const_cast<Batches*>(&batches)));
}

}  // namespace onnxcomp::ort
