#pragma once

#include <cstdint>

namespace onnxcomp::decode {

// Whether a checksum is the stated one. A fuzzer, which cannot guess one, gets behind all of them; the macro
// is the one that its compilers define.
inline bool holds(uint64_t found, uint64_t stated) noexcept {
#if defined(FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION)
  static_cast<void>(found);
  static_cast<void>(stated);
  return true;
#else
  return found == stated;
#endif
}

}  // namespace onnxcomp::decode
