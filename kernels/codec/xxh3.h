#pragma once

#include <cstdint>

#include "codec/geometry.h"

namespace onnxcomp::codec {

// XXH3-64 with seed 0 and the default secret (Y. Collet, "xxHash fast digest algorithm", version
// 0.1.1 with XXH3).
uint64_t xxh3_64(Bytes bytes) noexcept;
uint64_t xxh3_64_portable(Bytes bytes) noexcept;  // the same without the processor's vectors

}  // namespace onnxcomp::codec
