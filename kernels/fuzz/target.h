#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace onnxcomp::fuzz {

// Ends the process, which a fuzzer takes for a crash.
inline void expect(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "unexpected: %s\n", what);
  std::abort();
}

// Lets a compiler drop nothing that leads to `value`.
inline void keep(uint32_t value) {
  volatile uint32_t kept = value;
  static_cast<void>(kept);
}

// Where results go, if anywhere: the driver's -results=FILE.
inline std::FILE* results = nullptr;

// A record of that file: u8 length of the name, name, u32 size, bytes. One without a name ends those of an input.
inline void record(const char* name, const void* bytes, size_t size) {
  if (results == nullptr) return;
  const auto length = static_cast<uint8_t>(std::strlen(name));
  const auto count = static_cast<uint32_t>(size);
  expect(std::fwrite(&length, 1, 1, results) == 1 && std::fwrite(name, 1, length, results) == length &&
             std::fwrite(&count, sizeof count, 1, results) == 1 && std::fwrite(bytes, 1, size, results) == size,
         "results cannot be written");
}

}  // namespace onnxcomp::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
