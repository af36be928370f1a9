#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>

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

}  // namespace onnxcomp::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
