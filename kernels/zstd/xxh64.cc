#include "zstd/xxh64.h"

namespace onnxcomp::zstd {
namespace {

constexpr uint64_t kPrimes[] = {0x9e3779b185ebca87, 0xc2b2ae3d27d4eb4f, 0x165667b19e3779f9, 0x85ebca77c2b2ae63,
                                0x27d4eb2f165667c5};

uint64_t rotate(uint64_t value, int left) noexcept { return value << left | value >> (64 - left); }

uint64_t load(const uint8_t* at, int bytes) noexcept {
  uint64_t value = 0;
  for (int i = 0; i < bytes; ++i) value |= static_cast<uint64_t>(at[i]) << (8 * i);
  return value;
}

uint64_t round(uint64_t lane, uint64_t input) noexcept {
  return rotate(lane + input * kPrimes[1], 31) * kPrimes[0];
}

}  // namespace

uint64_t xxh64(codec::Bytes bytes) noexcept {
  const uint8_t* at = bytes.data;
  size_t left = bytes.size;
  uint64_t hash = kPrimes[4];
  if (left >= 32) {
    uint64_t lanes[] = {kPrimes[0] + kPrimes[1], kPrimes[1], 0, 0 - kPrimes[0]};
    for (; left >= 32; at += 32, left -= 32) {
      for (int i = 0; i < 4; ++i) lanes[i] = round(lanes[i], load(at + 8 * i, 8));
    }
    hash = rotate(lanes[0], 1) + rotate(lanes[1], 7) + rotate(lanes[2], 12) + rotate(lanes[3], 18);
    for (const uint64_t lane : lanes) hash = (hash ^ round(0, lane)) * kPrimes[0] + kPrimes[3];
  }
  hash += bytes.size;
  for (; left >= 8; at += 8, left -= 8) hash = rotate(hash ^ round(0, load(at, 8)), 27) * kPrimes[0] + kPrimes[3];
  for (; left >= 4; at += 4, left -= 4) hash = rotate(hash ^ load(at, 4) * kPrimes[0], 23) * kPrimes[1] + kPrimes[2];
  for (; left > 0; ++at, --left) hash = rotate(hash ^ *at * kPrimes[4], 11) * kPrimes[0];
  hash = (hash ^ hash >> 33) * kPrimes[1];
  hash = (hash ^ hash >> 29) * kPrimes[2];
  return hash ^ hash >> 32;
}

}  // namespace onnxcomp::zstd
