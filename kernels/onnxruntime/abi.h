#pragma once

// The part of onnxruntime's binary interface that a library of custom operators needs, declared
// anew: the library links against nothing, onnxruntime hands it a table of functions. The table only
// ever grows; the positions and signatures below hold from onnxruntime 1.17 (interface version 17) on.

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define ONNXCOMP_EXPORT extern "C" __declspec(dllexport)
#else
#define ONNXCOMP_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace onnxcomp::ort {

static_assert(sizeof(void*) == 8, "onnxruntime's calling convention differs on 32-bit Windows");

// Opaque: only pointers to them cross the boundary.
struct Status;
struct SessionOptions;
struct CustomOpDomain;
struct KernelInfo;
struct KernelContext;
struct ShapeInferContext;
struct OpAttribute;
struct Value;
struct TensorInfo;
struct MemoryInfo;
struct Allocator;

using FunctionTable = void (*const*)();

struct ApiBase {
  FunctionTable (*get_api)(uint32_t version);
  const char* (*get_version_string)();
};

inline constexpr uint32_t kApiVersion = 17;

enum class ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum class ElementType : int {
  kUndefined = 0,
  kFloat = 1,
  kUInt8 = 2,
  kInt8 = 3,
  kInt32 = 6,
  kInt64 = 7,
  kUInt64 = 13
};
enum class Characteristic : int { kRequired = 0, kOptional = 1, kVariadic = 2 };
enum class MemoryType : int { kDefault = 0 };
enum class AllocatorType : int { kArena = 1 };
enum class AttributeType : int { kInt = 1, kInts = 2 };

// One entry of the function table.
template <size_t kPosition, class Function>
struct Entry;

template <size_t kPosition, class Result, class... Arguments>
struct Entry<kPosition, Result(Arguments...)> {
  static Result call(FunctionTable table, Arguments... arguments) {
    return reinterpret_cast<Result (*)(Arguments...)>(table[kPosition])(arguments...);
  }
};

using CreateStatus = Entry<0, Status*(ErrorCode, const char*)>;
using GetErrorMessage = Entry<2, const char*(const Status*)>;
using ReleaseStatus = Entry<93, void(Status*)>;

struct CustomOp;
using CreateCustomOpDomain = Entry<26, Status*(const char*, CustomOpDomain**)>;
using AddOpToDomain = Entry<27, Status*(CustomOpDomain*, const CustomOp*)>;
using AddDomainToOptions = Entry<28, Status*(SessionOptions*, CustomOpDomain*)>;
using ReleaseDomain = Entry<101, void(CustomOpDomain*)>;
using AddConfigEntry = Entry<130, Status*(SessionOptions*, const char*, const char*)>;
using HasConfigEntry = Entry<237, Status*(const SessionOptions*, const char*, int*)>;

using GetTensorMutableData = Entry<51, Status*(Value*, void**)>;
using CreateTensorInfo = Entry<57, Status*(TensorInfo**)>;
using SetElementType = Entry<58, Status*(TensorInfo*, ElementType)>;
using SetDimensions = Entry<59, Status*(TensorInfo*, const int64_t*, size_t)>;
using GetElementType = Entry<60, Status*(const TensorInfo*, ElementType*)>;
using GetDimensionsCount = Entry<61, Status*(const TensorInfo*, size_t*)>;
using GetDimensions = Entry<62, Status*(const TensorInfo*, int64_t*, size_t)>;
using GetSymbolicDimensions = Entry<63, Status*(const TensorInfo*, const char**, size_t)>;
using GetTensorInfo = Entry<65, Status*(const Value*, TensorInfo**)>;
using ReleaseTensorInfo = Entry<99, void(TensorInfo*)>;

using GetAttributeInt = Entry<86, Status*(const KernelInfo*, const char*, int64_t*)>;
// (name, numbers, their count: room for how many, then how many there are)
using GetAttributeInts = Entry<163, Status*(const KernelInfo*, const char*, int64_t*, size_t*)>;
using GetNodeInputCount = Entry<230, Status*(const KernelInfo*, size_t*)>;
// (text, its length with the zero at the end: room for how much, then how much there is)
using GetOutputName = Entry<233, Status*(const KernelInfo*, size_t, char*, size_t*)>;
using GetNodeName = Entry<244, Status*(const KernelInfo*, char*, size_t*)>;
using GetConstantInput = Entry<249, Status*(const KernelInfo*, size_t, int*, const Value**)>;

using GetInputCount = Entry<88, Status*(const KernelContext*, size_t*)>;
using GetInput = Entry<90, Status*(const KernelContext*, size_t, const Value**)>;
using GetOutput = Entry<91, Status*(KernelContext*, size_t, const int64_t*, size_t, Value**)>;
// (function, tasks, batches: 0 leaves their number to onnxruntime, argument)
using ParallelFor =
    Entry<274, Status*(const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>;

using CreateCpuMemoryInfo = Entry<69, Status*(AllocatorType, MemoryType, MemoryInfo**)>;
using ReleaseMemoryInfo = Entry<94, void(MemoryInfo*)>;
using GetAllocator = Entry<253, Status*(const KernelContext*, const MemoryInfo*, Allocator**)>;
using AllocatorAlloc = Entry<75, Status*(Allocator*, size_t, void**)>;
using AllocatorFree = Entry<76, Status*(Allocator*, void*)>;
using ReleaseAllocator = Entry<132, void(Allocator*)>;

using GetInputShape = Entry<268, Status*(const ShapeInferContext*, size_t, TensorInfo**)>;
using GetShapeAttribute =
    Entry<269, Status*(const ShapeInferContext*, const char*, const OpAttribute**)>;
using SetOutputShape = Entry<270, Status*(const ShapeInferContext*, size_t, const TensorInfo*)>;
using SetSymbolicDimensions = Entry<271, Status*(TensorInfo*, const char**, size_t)>;
using ReadAttribute =
    Entry<272, Status*(const OpAttribute*, AttributeType, void*, size_t, size_t*)>;

// What onnxruntime reads of an operator. Order and types are the interface; `version` says how many
// of the fields it may read, so a later runtime never looks behind get_end_version.
struct CustomOp {
  uint32_t version = kApiVersion;
  void* (*create_kernel)(const CustomOp*, FunctionTable, const KernelInfo*) = nullptr;
  const char* (*get_name)(const CustomOp*) = nullptr;
  const char* (*get_execution_provider)(const CustomOp*) = nullptr;
  ElementType (*get_input_type)(const CustomOp*, size_t) = nullptr;
  size_t (*get_input_count)(const CustomOp*) = nullptr;
  ElementType (*get_output_type)(const CustomOp*, size_t) = nullptr;
  size_t (*get_output_count)(const CustomOp*) = nullptr;
  void (*compute)(void*, KernelContext*) = nullptr;
  void (*destroy_kernel)(void*) = nullptr;
  Characteristic (*get_input_characteristic)(const CustomOp*, size_t) = nullptr;
  Characteristic (*get_output_characteristic)(const CustomOp*, size_t) = nullptr;
  MemoryType (*get_input_memory_type)(const CustomOp*, size_t) = nullptr;
  int (*get_variadic_input_min_arity)(const CustomOp*) = nullptr;
  int (*get_variadic_input_homogeneity)(const CustomOp*) = nullptr;
  int (*get_variadic_output_min_arity)(const CustomOp*) = nullptr;
  int (*get_variadic_output_homogeneity)(const CustomOp*) = nullptr;
  // The second forms return a status, which Python sees as an exception; the first are not used.
  Status* (*create_kernel_v2)(const CustomOp*, FunctionTable, const KernelInfo*, void**) = nullptr;
  Status* (*compute_v2)(void*, KernelContext*) = nullptr;
  Status* (*infer_output_shape)(const CustomOp*, ShapeInferContext*) = nullptr;
  int (*get_start_version)(const CustomOp*) = nullptr;
  int (*get_end_version)(const CustomOp*) = nullptr;
};

static_assert(offsetof(CustomOp, create_kernel) == 8 &&
                  offsetof(CustomOp, get_end_version) == 8 * 21 &&
                  sizeof(CustomOp) == 8 * 22,
              "one slot of eight bytes for each field");

}  // namespace onnxcomp::ort
