#pragma once

// Conversions between floats as bits, the same on every processor, of NaN too.

#include <cstdint>
#include <cstring>

namespace onnxcomp::decode {

inline uint32_t bits_of_float(float value) noexcept {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float float_of_bits(uint32_t bits) noexcept {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

uint32_t float16_to_float(uint16_t half) noexcept;
uint64_t float_to_double(uint32_t single) noexcept;
uint16_t float_to_float16(uint32_t single) noexcept;   // to nearest, ties to even
uint16_t float_to_bfloat16(uint32_t single) noexcept;  // likewise

}  // namespace onnxcomp::decode
