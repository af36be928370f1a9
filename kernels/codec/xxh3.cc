#include "codec/xxh3.h"

#include "codec/xxh3_step.h"
#include "cpu/features.h"

namespace onnxcomp::codec {
namespace {

constexpr uint64_t kPrime32[] = {0x9e3779b1, 0x85ebca77, 0xc2b2ae3d};
constexpr uint64_t kPrime64[] = {0x9e3779b185ebca87, 0xc2b2ae3d27d4eb4f, 0x165667b19e3779f9,
                                 0x85ebca77c2b2ae63, 0x27d4eb2f165667c5};
constexpr uint64_t kMix1 = 0x165667919e3779f9;
constexpr uint64_t kMix2 = 0x9fb21c651e98df25;

// The specification's default secret.
constexpr uint8_t kSecret[192] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e};

constexpr size_t kStripe = kXxh3Stripe;
constexpr size_t kStripesPerBlock = (sizeof kSecret - kStripe) / 8;
constexpr size_t kBlock = kStripe * kStripesPerBlock;

uint64_t load32(const uint8_t* at) {
  return at[0] | static_cast<uint64_t>(at[1]) << 8 | static_cast<uint64_t>(at[2]) << 16 |
         static_cast<uint64_t>(at[3]) << 24;
}

uint64_t load64(const uint8_t* at) { return load32(at) | load32(at + 4) << 32; }

uint64_t rotate(uint64_t value, int left) { return value << left | value >> (64 - left); }

uint64_t reverse_bytes(uint64_t value) {
  uint64_t reversed = 0;
  for (int i = 0; i < 8; ++i) reversed |= (value >> (8 * i) & 0xff) << (56 - 8 * i);
  return reversed;
}

// Both halves of the 128-bit product, exclusive or.
uint64_t fold_product(uint64_t a, uint64_t b) {
  const uint64_t a_low = a & 0xffffffff, a_high = a >> 32, b_low = b & 0xffffffff, b_high = b >> 32;
  const uint64_t low = a_low * b_low, cross = a_high * b_low, other = a_low * b_high;
  const uint64_t middle = cross + (low >> 32) + (other & 0xffffffff);
  const uint64_t high = a_high * b_high + (middle >> 32) + (other >> 32);
  return (middle << 32 | (low & 0xffffffff)) ^ high;
}

uint64_t avalanche(uint64_t x) {
  x = (x ^ x >> 37) * kMix1;
  return x ^ x >> 32;
}

uint64_t avalanche_short(uint64_t x) {
  x = (x ^ x >> 33) * kPrime64[1];
  x = (x ^ x >> 29) * kPrime64[2];
  return x ^ x >> 32;
}

uint64_t mix(const uint8_t* data, size_t secret) {
  return fold_product(load64(data) ^ load64(kSecret + secret),
                      load64(data + 8) ^ load64(kSecret + secret + 8));
}

uint64_t hash_to_16(const uint8_t* data, size_t size) {
  if (size == 0) return avalanche_short(load64(kSecret + 56) ^ load64(kSecret + 64));
  if (size <= 3) {
    const uint64_t combined = data[size - 1] | static_cast<uint64_t>(size) << 8 |
                              static_cast<uint64_t>(data[0]) << 16 |
                              static_cast<uint64_t>(data[size >> 1]) << 24;
    return avalanche_short(load32(kSecret) ^ load32(kSecret + 4) ^ combined);
  }
  if (size <= 8) {
    const uint64_t combined = load32(data + size - 4) | load32(data) << 32;
    uint64_t value = load64(kSecret + 8) ^ load64(kSecret + 16) ^ combined;
    value = (value ^ rotate(value, 49) ^ rotate(value, 24)) * kMix2;
    value = (value ^ ((value >> 35) + size)) * kMix2;
    return value ^ value >> 28;
  }
  const uint64_t low = load64(kSecret + 24) ^ load64(kSecret + 32) ^ load64(data);
  const uint64_t high = load64(kSecret + 40) ^ load64(kSecret + 48) ^ load64(data + size - 8);
  return avalanche(size + reverse_bytes(low) + high + fold_product(low, high));
}

uint64_t hash_to_240(const uint8_t* data, size_t size) {
  uint64_t sum = size * kPrime64[0];
  if (size <= 128) {
    for (size_t i = 0; i <= (size - 1) / 32; ++i)
      sum += mix(data + 16 * i, 32 * i) + mix(data + size - 16 * i - 16, 32 * i + 16);
    return avalanche(sum);
  }
  for (size_t i = 0; i < 8; ++i) sum += mix(data + 16 * i, 16 * i);
  sum = avalanche(sum);
  for (size_t i = 8; i < size / 16; ++i) sum += mix(data + 16 * i, 16 * (i - 8) + 3);
  return avalanche(sum + mix(data + size - 16, 119));
}

void add_stripe(uint64_t* sums, const uint8_t* stripe, const uint8_t* secret) {
  uint64_t data[8], products[8];
  for (int i = 0; i < 8; ++i) {
    data[i] = load64(stripe + 8 * i);
    const uint64_t value = data[i] ^ load64(secret + 8 * i);
    products[i] = (value & 0xffffffff) * (value >> 32);
  }
  for (int i = 0; i < 8; ++i) sums[i] += products[i] + data[i ^ 1];
}

void accumulate_portable(uint64_t* sums, const uint8_t* data, const uint8_t* secret, size_t stripes) {
  for (size_t n = 0; n < stripes; ++n) add_stripe(sums, data + n * kStripe, secret + 8 * n);
}

void scramble(uint64_t* sums) {
  for (int i = 0; i < 8; ++i) {
    const uint64_t mixed = sums[i] ^ sums[i] >> 47 ^ load64(kSecret + sizeof kSecret - kStripe + 8 * i);
    sums[i] = mixed * kPrime32[0];
  }
}

uint64_t hash_long(const uint8_t* data, size_t size, Xxh3Accumulate accumulate) {
  uint64_t total = size * kPrime64[0];
  uint64_t sums[8] = {kPrime32[2], kPrime64[0], kPrime64[1], kPrime64[2],
                      kPrime64[3], kPrime32[1], kPrime64[4], kPrime32[0]};
  const uint8_t* last_stripe = data + size - kStripe;
  for (; size > kBlock; data += kBlock, size -= kBlock) {
    accumulate(sums, data, kSecret, kStripesPerBlock);
    scramble(sums);
  }
  accumulate(sums, data, kSecret, (size - 1) / kStripe);
  accumulate(sums, last_stripe, kSecret + sizeof kSecret - kStripe - 7, 1);
  for (int i = 0; i < 4; ++i)
    total += fold_product(sums[2 * i] ^ load64(kSecret + 11 + 16 * i),
                          sums[2 * i + 1] ^ load64(kSecret + 19 + 16 * i));
  return avalanche(total);
}

}  // namespace

uint64_t xxh3_64_portable(Bytes bytes) noexcept {
  if (bytes.size <= 16) return hash_to_16(bytes.data, bytes.size);
  if (bytes.size <= 240) return hash_to_240(bytes.data, bytes.size);
  return hash_long(bytes.data, bytes.size, accumulate_portable);
}

uint64_t xxh3_64(Bytes bytes) noexcept {
#ifdef ONNXCOMP_HAVE_AVX2
  if (bytes.size > 240 && cpu_features().avx2) return hash_long(bytes.data, bytes.size, xxh3_accumulate_avx2);
#endif
  return xxh3_64_portable(bytes);
}

}  // namespace onnxcomp::codec
