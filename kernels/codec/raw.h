#pragma once

// Back end 0: every code in the same number of bits above the smallest one. The profile byte is
// that number.

#include <vector>

#include "codec/geometry.h"
#include "codec/status.h"

namespace onnxcomp::codec::raw {

std::vector<uint8_t> encode(const int32_t* codes, int64_t count);

// The length of what `encode` gives when the codes lie between these two.
size_t encoded_size(int32_t smallest, int32_t largest, int64_t count);

Status decode(Bytes payload, int64_t count, int32_t* codes);

}  // namespace onnxcomp::codec::raw
