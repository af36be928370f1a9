#include <nmmintrin.h>

#include <cstring>

#include "codec/crc32c_step.h"

namespace onnxcomp::codec {
namespace {

uint64_t step_word(uint64_t crc, const uint8_t* data) {
  uint64_t word;
  std::memcpy(&word, data, 8);
  return _mm_crc32_u64(crc, word);
}

}  // namespace

uint32_t crc32c_step(uint32_t crc, const uint8_t* data, size_t size) noexcept {
  // An instruction waits three cycles for the one before, so three stretches take turns.
  for (; size >= 3 * kCrcStretch; data += 3 * kCrcStretch, size -= 3 * kCrcStretch) {
    uint64_t first = crc, second = 0, third = 0;
    for (size_t at = 0; at < kCrcStretch; at += 8) {
      first = step_word(first, data + at);
      second = step_word(second, data + kCrcStretch + at);
      third = step_word(third, data + 2 * kCrcStretch + at);
    }
    crc = crc32c_over_stretch(static_cast<uint32_t>(first)) ^ static_cast<uint32_t>(second);
    crc = crc32c_over_stretch(crc) ^ static_cast<uint32_t>(third);
  }
  for (; size >= 8; data += 8, size -= 8) crc = static_cast<uint32_t>(step_word(crc, data));
  for (; size > 0; ++data, --size) crc = _mm_crc32_u8(crc, *data);
  return crc;
}

}  // namespace onnxcomp::codec
