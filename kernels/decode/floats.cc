#include "decode/floats.h"

namespace onnxcomp::decode {

uint32_t float16_to_float(uint16_t half) noexcept {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  uint32_t exponent = half >> 10 & 31, mantissa = half & 0x3ff;
  if (exponent == 31) return sign | 0x7f800000 | mantissa << 13;
  if (exponent == 0) {
    if (mantissa == 0) return sign;
    for (exponent = 1; (mantissa & 0x400) == 0; --exponent) mantissa <<= 1;  // wraps: 112 is added below
    mantissa &= 0x3ff;
  }
  return sign | (exponent + 112) << 23 | mantissa << 13;
}

uint64_t float_to_double(uint32_t single) noexcept {
  const uint64_t sign = static_cast<uint64_t>(single >> 31) << 63;
  uint64_t exponent = single >> 23 & 255, mantissa = single & 0x7fffff;
  if (exponent == 255) return sign | uint64_t{2047} << 52 | mantissa << 29;
  if (exponent == 0) {
    if (mantissa == 0) return sign;
    for (exponent = 1; (mantissa & 0x800000) == 0; --exponent) mantissa <<= 1;
    mantissa &= 0x7fffff;
  }
  return sign | (exponent + 896) << 52 | mantissa << 29;
}

uint16_t float_to_float16(uint32_t single) noexcept {
  const auto sign = static_cast<uint16_t>(single >> 16 & 0x8000);
  const uint32_t size = single & 0x7fffffff;
  if (size > 0x7f800000) {  // NaN keeps what fits of its payload, and is no infinity
    const uint32_t payload = size >> 13 & 0x3ff;
    return static_cast<uint16_t>(sign | 0x7c00 | (payload != 0 ? payload : 1));
  }
  if (size >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00);
  if (size < 0x33000000) return sign;
  const int exponent = static_cast<int>(size >> 23);
  const uint32_t mantissa = (size & 0x7fffff) | 0x800000;
  // Below 2^-14 numbers have the step 2^-24, whatever their exponent.
  const int shift = exponent >= 113 ? 13 : 126 - exponent;
  const uint32_t kept = mantissa >> shift, lost = mantissa & ((uint32_t{1} << shift) - 1);
  const uint32_t half = uint32_t{1} << (shift - 1);
  const uint32_t rounded = kept + (lost > half || (lost == half && (kept & 1) != 0) ? 1 : 0);
  // The implicit bit of a normal number is 1 in the exponent's field.
  const uint32_t base = exponent >= 113 ? static_cast<uint32_t>(exponent - 113) << 10 : 0;
  return static_cast<uint16_t>(sign | (base + rounded));
}

uint16_t float_to_bfloat16(uint32_t single) noexcept {
  return static_cast<uint16_t>((single + 0x7fff + (single >> 16 & 1)) >> 16);
}

}  // namespace onnxcomp::decode
