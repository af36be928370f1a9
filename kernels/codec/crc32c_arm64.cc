#ifdef _MSC_VER
#include <intrin.h>
#else
#include <arm_acle.h>
#endif

#include <cstring>

#include "codec/crc32c_step.h"

namespace onnxcomp::codec {

uint32_t crc32c_step(uint32_t crc, const uint8_t* data, size_t size) noexcept {
  for (; size >= 8; data += 8, size -= 8) {
    uint64_t word;
    std::memcpy(&word, data, 8);
    crc = __crc32cd(crc, word);
  }
  for (; size > 0; ++data, --size) crc = __crc32cb(crc, *data);
  return crc;
}

}  // namespace onnxcomp::codec
