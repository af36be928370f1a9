#pragma once

// Numbers from bit fields, each of which is a payload of codes (docs/container.md, planes).

#include <cstdint>

#include "codec/geometry.h"
#include "codec/lanes.h"
#include "codec/status.h"

namespace onnxcomp::codec {

// Floats of 16 bits whose values are wanted as float32.
enum class Widening : uint8_t { kNone, kFloat16, kBfloat16 };

// The bit fields of numbers, from the top down.
struct Planes {
  const Bytes* payloads;
  const uint8_t* widths;  // 1 to 31 each, their sum is the size of a number: 8, 16, 32 or 64
  int count;
  bool rotated;           // the numbers were rotated left by one bit
  Widening widening = Widening::kNone;
};

// Of `count` fields the sum of the widths; 0 where one is out of its range.
int planes_bits(const uint8_t* widths, int count) noexcept;

// Writes geometry.count() numbers of planes_bits bits, or float32 where they are widened; a NaN keeps its
// payload, zeros behind it. `defective` is the field with an error.
Status decode_planes(const Planes& planes, Geometry geometry, const LaneKernel& kernel, void* numbers,
                     int* defective);

}  // namespace onnxcomp::codec
