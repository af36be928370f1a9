#pragma once

// Back end 0: every code in the same number of bits above the smallest one. The profile byte is
// that number.

#include <vector>

#include "codec/geometry.h"
#include "codec/lanes.h"
#include "codec/status.h"

namespace onnxcomp::codec::raw {

std::vector<uint8_t> encode(const int32_t* codes, int64_t count);

// The length of what `encode` gives when the codes lie between these two.
size_t encoded_size(int32_t smallest, int32_t largest, int64_t count);

// Where a payload's codes are, modulo 2^32, after every check.
Status open(Bytes payload, int64_t count, PackedBits* bits);

// `append_bits` of lanes.h from any `first` on, and to the end.
void append(const PackedBits& bits, int64_t first, int64_t count, const LaneKernel& kernel, int width,
            bool rotated, uint32_t* numbers);

Status decode(Bytes payload, int64_t count, const LaneKernel& kernel, int32_t* codes);

}  // namespace onnxcomp::codec::raw
