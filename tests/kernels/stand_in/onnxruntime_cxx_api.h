#pragma once

// Stands in for onnxruntime's header of this name, which its Python wheel lacks: what the program in
// docs/kernels.md uses of its C++ interface, over the table of functions of the real library.

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "onnxruntime/abi.h"

enum OrtAllocatorType { OrtArenaAllocator = 1 };
enum OrtMemType { OrtMemTypeDefault = 0 };
extern "C" const onnxcomp::ort::ApiBase* OrtGetApiBase() noexcept;

namespace Ort {

namespace abi = onnxcomp::ort;

template <class... Arguments>
using Call = abi::Status*(Arguments...);
using CreateEnv = abi::Entry<3, Call<int, const char*, void**>>;
using CreateSession =
    abi::Entry<7, Call<void*, const char*, const abi::SessionOptions*, void**>>;
using RunSession = abi::Entry<9, Call<void*, const void*, const char* const*, void* const*, size_t,
                                      const char* const*, size_t, void**>>;
using CreateSessionOptions = abi::Entry<10, Call<abi::SessionOptions**>>;
using RegisterLibrary = abi::Entry<29, Call<abi::SessionOptions*, const char*, void**>>;
using CreateTensorOver =
    abi::Entry<49, Call<const void*, void*, size_t, const int64_t*, size_t, int, void**>>;
using CreateCpuMemoryInfo = abi::Entry<69, Call<int, int, void**>>;

inline abi::FunctionTable table() {
  static const abi::FunctionTable found = OrtGetApiBase()->get_api(abi::kApiVersion);
  return found;
}

template <class Function, class... Arguments>
void call(Arguments... arguments) {
  if (abi::Status* status = Function::call(table(), arguments...))
    throw std::runtime_error(abi::GetErrorMessage::call(table(), status));
}

// Handles are left to the end of the program.
struct Env {
  Env() { call<CreateEnv>(3, "", &handle); }
  void* handle = nullptr;
};

struct SessionOptions {
  SessionOptions() { call<CreateSessionOptions>(&handle); }
  SessionOptions& RegisterCustomOpsLibrary(const char* path) {
    void* library = nullptr;
    call<RegisterLibrary>(handle, path, &library);
    return *this;
  }
  abi::SessionOptions* handle = nullptr;
};

struct RunOptions {
  explicit RunOptions(std::nullptr_t) {}
};

struct MemoryInfo {
  static MemoryInfo CreateCpu(OrtAllocatorType allocator, OrtMemType kind) {
    MemoryInfo made;
    call<CreateCpuMemoryInfo>(static_cast<int>(allocator), static_cast<int>(kind), &made.handle);
    return made;
  }
  void* handle = nullptr;
};

struct Value {
  template <class T>
  static Value CreateTensor(const MemoryInfo& memory, T* data, size_t count, const int64_t* shape,
                            size_t rank) {
    static_assert(std::is_same_v<T, float>, "the only type that is stood in for");
    Value made;
    call<CreateTensorOver>(static_cast<const void*>(memory.handle), static_cast<void*>(data),
                           count * sizeof(T), shape, rank,
                           static_cast<int>(abi::ElementType::kFloat), &made.handle);
    return made;
  }
  template <class T>
  const T* GetTensorData() const {
    void* data = nullptr;
    call<abi::GetTensorMutableData>(static_cast<abi::Value*>(handle), &data);
    return static_cast<const T*>(data);
  }
  void* handle = nullptr;
};

struct Session {
  Session(const Env& env, const char* path, const SessionOptions& options) {
    call<CreateSession>(env.handle, path, options.handle, &handle);
  }
  std::vector<Value> Run(const RunOptions&, const char* const* input_names, const Value* inputs,
                         size_t input_count, const char* const* output_names,
                         size_t output_count) {
    std::vector<void*> given, made(output_count);
    for (size_t i = 0; i < input_count; ++i) given.push_back(inputs[i].handle);
    call<RunSession>(handle, static_cast<const void*>(nullptr), input_names, given.data(),
                     input_count, output_names, output_count, made.data());
    std::vector<Value> values(output_count);
    for (size_t i = 0; i < output_count; ++i) values[i].handle = made[i];
    return values;
  }
  void* handle = nullptr;
};

}  // namespace Ort
