#pragma once

#include <cstddef>
#include <cstdint>

namespace onnxcomp::codec {

// The remainder after `size` more bytes, by the processor's instruction: crc32c_x86.cc, crc32c_arm64.cc.
uint32_t crc32c_step(uint32_t crc, const uint8_t* data, size_t size) noexcept;

}  // namespace onnxcomp::codec
