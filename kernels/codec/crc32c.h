#pragma once

#include <cstdint>

#include "codec/geometry.h"

namespace onnxcomp::codec {

// CRC-32C (Castagnoli; RFC 3720, appendix B.4) of all bytes.
uint32_t crc32c(Bytes bytes) noexcept;

// The same without the processor's own instruction.
uint32_t crc32c_portable(Bytes bytes) noexcept;

}  // namespace onnxcomp::codec
