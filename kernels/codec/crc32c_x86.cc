#include <nmmintrin.h>

#include <cstring>

#include "codec/crc32c_step.h"

namespace onnxcomp::codec {

uint32_t crc32c_step(uint32_t crc, const uint8_t* data, size_t size) noexcept {
  uint64_t remainder = crc;
  for (; size >= 8; data += 8, size -= 8) {
    uint64_t word;
    std::memcpy(&word, data, 8);
    remainder = _mm_crc32_u64(remainder, word);
  }
  crc = static_cast<uint32_t>(remainder);
  for (; size > 0; ++data, --size) crc = _mm_crc32_u8(crc, *data);
  return crc;
}

}  // namespace onnxcomp::codec
