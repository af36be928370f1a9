#pragma once

// Logarithms and powers of two in integers: whatever decides bytes must be the same on every
// processor, and libm is not. docs/codec.md states both functions as they stand here.

#include <cstdint>

namespace onnxcomp::codec {

inline constexpr int64_t kOne = int64_t{1} << 16;  // 1.0 with 16 fractional bits

// Position of the highest set bit; value > 0.
inline int top_bit(uint64_t value) noexcept {
  int top = 0;
  for (int step = 32; step > 0; step >>= 1) {
    if (value >> step) {
      value >>= step;
      top += step;
    }
  }
  return top;
}

// floor(65536 log2(value)) but for the rounding of 16 squarings; value > 0.
inline int64_t log2_fixed(uint64_t value) noexcept {
  const int top = top_bit(value);
  uint64_t mantissa = top > 30 ? value >> (top - 30) : value << (30 - top);  // in [2^30, 2^31)
  int64_t fraction = 0;
  for (int i = 0; i < 16; ++i) {
    mantissa = (mantissa * mantissa) >> 30;
    const uint64_t carry = mantissa >> 31;
    mantissa >>= carry;
    fraction = fraction * 2 + static_cast<int64_t>(carry);
  }
  return top * kOne + fraction;
}

// 2^(exponent / 65536) with 16 fractional bits, for exponents below 47 * 65536; 0 when it underflows.
inline uint64_t exp2_fixed(int64_t exponent) noexcept {
  const int64_t whole = exponent >> 16;
  const uint64_t x = static_cast<uint64_t>(exponent & 0xffff) << 14;  // fraction, 30 bits
  // Taylor coefficients ln(2)^k / k!, 30 fractional bits; within 0.1 %, which is near enough.
  constexpr uint64_t kCoefficients[] = {1073741824, 744261118, 257941248, 59597083, 10327387};
  uint64_t sum = kCoefficients[4];
  for (int k = 3; k >= 0; --k) sum = ((sum * x) >> 30) + kCoefficients[k];
  const int64_t shift = 14 - whole;  // from 30 fractional bits to 16
  if (shift >= 64) return 0;
  return shift >= 0 ? sum >> shift : sum << -shift;
}

}  // namespace onnxcomp::codec
