#pragma once

#include <cstddef>
#include <cstdint>

namespace onnxcomp::codec {

inline constexpr size_t kXxh3Stripe = 64;

// Adds `stripes` stripes of 64 bytes to the eight sums; the secret moves on by 8 bytes a stripe.
using Xxh3Accumulate = void (*)(uint64_t* sums, const uint8_t* data, const uint8_t* secret, size_t stripes);

void xxh3_accumulate_avx2(uint64_t* sums, const uint8_t* data, const uint8_t* secret, size_t stripes) noexcept;

}  // namespace onnxcomp::codec
