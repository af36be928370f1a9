#pragma once

// Codes of a chunk -> bytes of the tensor (docs/container.md, "Representations").

#include "decode/directory.h"

namespace onnxcomp::decode {

// Which codes these are of which tensor.
struct Part {
  const Entry& entry;
  const uint64_t* dims;
  const int32_t* codes;
  uint64_t start;  // the number of the tensor that the first code is
  uint64_t count;
};

// Bytes of `part.count` numbers. `out` needs no alignment.
void write_integers(const Part& part, uint8_t* out) noexcept;
void restore(const Part& part, int32_t* codes) noexcept;  // codes of a trellis -> integers, in their place
void write_grid(const Part& part, const uint8_t* scales, uint8_t* out) noexcept;
bool write_codebook(const Part& part, const uint8_t* values, uint8_t* out) noexcept;  // false: a code is outside

// numbers[count] of 64 bits: numbers << width | code.
void append_field(const Part& part, int width, uint64_t* numbers) noexcept;
void write_planes(const Part& part, const uint64_t* numbers, uint8_t* out) noexcept;

}  // namespace onnxcomp::decode
