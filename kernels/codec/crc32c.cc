#include "codec/crc32c.h"

#include "codec/crc32c_step.h"
#include "cpu/features.h"

namespace onnxcomp::codec {
namespace {

constexpr uint32_t kPolynomial = 0x82f63b78;  // reflected

// rows[k][b]: what byte b does to the remainder when k bytes follow it.
struct Remainders {
  uint32_t rows[8][256];

  constexpr Remainders() : rows() {
    for (uint32_t byte = 0; byte < 256; ++byte) {
      uint32_t remainder = byte;
      for (int bit = 0; bit < 8; ++bit) remainder = remainder >> 1 ^ (remainder & 1 ? kPolynomial : 0);
      rows[0][byte] = remainder;
    }
    for (int k = 1; k < 8; ++k) {
      for (int byte = 0; byte < 256; ++byte) {
        const uint32_t before = rows[k - 1][byte];
        rows[k][byte] = before >> 8 ^ rows[0][before & 0xff];
      }
    }
  }
};

constexpr Remainders kRemainders;

// The product of two polynomials modulo the CRC's. Bit 31 is the constant term.
constexpr uint32_t product(uint32_t a, uint32_t b) {
  uint32_t sum = 0;
  for (int bit = 31; bit >= 0; --bit) {
    if (a >> bit & 1) sum ^= b;
    b = b >> 1 ^ (b & 1 ? kPolynomial : 0);
  }
  return sum;
}

// of[k][b]: what the zeros of a stretch make of byte k of a remainder, if it is b.
struct Stretch {
  uint32_t of[4][256];

  constexpr Stretch() : of() {
    uint32_t power = uint32_t{1} << 23;  // x^8, one zero byte
    for (size_t bytes = 1; bytes < kCrcStretch; bytes *= 2) power = product(power, power);
    for (int k = 0; k < 4; ++k) {
      for (uint32_t byte = 0; byte < 256; ++byte) of[k][byte] = product(byte << (8 * k), power);
    }
  }
};

constexpr Stretch kStretch;

// Eight bytes at once (M. Kounavis, F. Berry, ISCC 2005).
uint32_t step_portable(uint32_t crc, const uint8_t* data, size_t size) noexcept {
  for (; size >= 8; data += 8, size -= 8) {
    const uint32_t mixed = crc ^ (data[0] | static_cast<uint32_t>(data[1]) << 8 |
                                  static_cast<uint32_t>(data[2]) << 16 | static_cast<uint32_t>(data[3]) << 24);
    crc = 0;
    for (int i = 0; i < 4; ++i) crc ^= kRemainders.rows[7 - i][mixed >> (8 * i) & 0xff] ^ kRemainders.rows[3 - i][data[4 + i]];
  }
  for (; size > 0; ++data, --size) crc = crc >> 8 ^ kRemainders.rows[0][(crc ^ *data) & 0xff];
  return crc;
}

}  // namespace

uint32_t crc32c_over_stretch(uint32_t crc) noexcept {
  return kStretch.of[0][crc & 0xff] ^ kStretch.of[1][crc >> 8 & 0xff] ^ kStretch.of[2][crc >> 16 & 0xff] ^
         kStretch.of[3][crc >> 24];
}

uint32_t crc32c_portable(Bytes bytes) noexcept {
  return ~step_portable(~uint32_t{0}, bytes.data, bytes.size);
}

uint32_t crc32c(Bytes bytes) noexcept {
#ifdef ONNXCOMP_HAVE_CRC32C
  if (cpu_features().crc32c) return ~crc32c_step(~uint32_t{0}, bytes.data, bytes.size);
#endif
  return crc32c_portable(bytes);
}

}  // namespace onnxcomp::codec
