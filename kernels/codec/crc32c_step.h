#pragma once

#include <cstddef>
#include <cstdint>

namespace onnxcomp::codec {

// The remainder after `size` more bytes, by the processor's instruction: crc32c_x86.cc, crc32c_arm64.cc.
uint32_t crc32c_step(uint32_t crc, const uint8_t* data, size_t size) noexcept;

inline constexpr size_t kCrcStretch = 2048;  // bytes whose remainder is computed beside that of others

// What kCrcStretch zero bytes make of a remainder.
uint32_t crc32c_over_stretch(uint32_t crc) noexcept;

}  // namespace onnxcomp::codec
