#pragma once

#include <cstdio>

#include "codec/geometry.h"
#include "decode/failure.h"

namespace onnxcomp::decode {

using codec::Bytes;

// Where the bytes of a container come from: memory, which is used where it lies, a file or a callback.
struct Source {
  const uint8_t* memory = nullptr;
  std::FILE* file = nullptr;
  onnxcomp_read read = nullptr;
  void* user = nullptr;
  uint64_t size = 0;

  Source() = default;
  ~Source() {
    if (file != nullptr) std::fclose(file);
  }
  Source(const Source&) = delete;
  Source& operator=(const Source&) = delete;

  onnxcomp_status open_file(const char* path, onnxcomp_error* error) noexcept;

  // The bytes at an offset inside the source, in `buffer` unless they are in memory already.
  onnxcomp_status get(uint64_t offset, uint64_t length, Array<uint8_t>* buffer, Bytes* bytes, const Budget& budget,
                      onnxcomp_error* error) const noexcept;
};

}  // namespace onnxcomp::decode
