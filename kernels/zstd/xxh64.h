#pragma once

#include <cstdint>

#include "codec/geometry.h"

namespace onnxcomp::zstd {

// XXH64 with seed 0 (Y. Collet, "xxHash fast digest algorithm", version 0.1.1).
uint64_t xxh64(codec::Bytes bytes) noexcept;

}  // namespace onnxcomp::zstd
