#include "decode/numbers.h"

#include <cstring>

#include "decode/data_types.h"
#include "decode/floats.h"
#include "trellis/trellis.h"

namespace onnxcomp::decode {
namespace {

void store(uint64_t value, int bytes, uint8_t* out) noexcept {
  for (int i = 0; i < bytes; ++i) out[i] = static_cast<uint8_t>(value >> (8 * i));
}

uint32_t load32(const uint8_t* at) noexcept {
  return at[0] | static_cast<uint32_t>(at[1]) << 8 | static_cast<uint32_t>(at[2]) << 16 |
         static_cast<uint32_t>(at[3]) << 24;
}

// `fill` gets the number of each code.
template <int kBytes, class Number>
void store_each(const Part& part, uint8_t* out, const Number& number) noexcept {
  for (uint64_t i = 0; i < part.count; ++i) store(number(i), kBytes, out + kBytes * i);
}

template <class Number>
void store_all(const Part& part, int bytes, uint8_t* out, const Number& number) noexcept {
  if (bytes == 1) return store_each<1>(part, out, number);
  if (bytes == 2) return store_each<2>(part, out, number);
  if (bytes == 4) return store_each<4>(part, out, number);
  return store_each<8>(part, out, number);
}

void write_narrow_integers(const Part& part, uint8_t* out) noexcept {
  const int bits = part.entry.bits;
  uint32_t pending = 0;
  int held = 0;
  for (uint64_t i = 0; i < part.count; ++i) {
    pending |= (static_cast<uint32_t>(part.codes[i]) & ((uint32_t{1} << bits) - 1)) << held;
    held += bits;
    if (held < 8) continue;
    *out++ = static_cast<uint8_t>(pending);
    pending >>= 8;
    held -= 8;
  }
  if (held > 0) *out = static_cast<uint8_t>(pending);
}

void store_float(float value, int data_type, uint8_t* out) noexcept {
  const uint32_t bits = bits_of_float(value);
  if (data_type == kFloat16) return store(float_to_float16(bits), 2, out);
  if (data_type == kBfloat16) return store(float_to_bfloat16(bits), 2, out);
  if (data_type == kDouble) return store(float_to_double(bits), 8, out);
  store(bits, 4, out);
}

uint64_t widen(uint64_t number, int source, int data_type) noexcept {
  if (source == data_type) return number;
  uint32_t single = static_cast<uint32_t>(number);
  if (source == kBfloat16) single <<= 16;
  if (source == kFloat16) single = float16_to_float(static_cast<uint16_t>(number));
  return data_type == kFloat ? single : float_to_double(single);
}

}  // namespace

void write_integers(const Part& part, uint8_t* out) noexcept {
  if (part.entry.bits < 8) return write_narrow_integers(part, out);
  store_all(part, part.entry.bits / 8, out,
            [&](uint64_t i) { return static_cast<uint64_t>(static_cast<int64_t>(part.codes[i])); });
}

void restore(const Part& part, int32_t* codes) noexcept {
  uint64_t inner = 1;
  for (int axis = part.entry.along + 1; axis < part.entry.rank; ++axis) inner *= part.dims[axis];
  const uint64_t length = part.entry.along == 0 ? part.count / inner : part.dims[part.entry.along];
  trellis::restore(codes, static_cast<int64_t>(part.count / (length * inner)), static_cast<int64_t>(length),
                   static_cast<int64_t>(inner));
}

void write_grid(const Part& part, const uint8_t* scales, uint8_t* out) noexcept {
  const Entry& entry = part.entry;
  const auto item = static_cast<uint64_t>(entry.bits / 8);
  uint64_t inner = 1, length = 1;
  const bool whole = entry.axis == kWholeAxis;
  for (int axis = entry.axis + 1; axis < entry.rank; ++axis) inner *= part.dims[axis];
  if (!whole) length = part.dims[entry.axis];
  const uint64_t blocks = entry.block > 0 ? (length + entry.block - 1) / entry.block : 0;
  for (uint64_t i = 0; i < part.count;) {  // run after run of the numbers with one index along the axis
    const uint64_t flat = part.start + i, run = whole ? 0 : flat / inner, within = whole ? 0 : flat % inner;
    const uint64_t place = run % length;
    const uint64_t left = whole ? part.count : inner - within;
    const uint64_t end = left < part.count - i ? i + left : part.count;
    const bool blocked = entry.block > 0;
    const uint64_t first = blocked ? ((run / length) * blocks + place / entry.block) * inner + within : place;
    for (uint64_t j = 0; i < end; ++i, ++j) {
      const float scale = float_of_bits(load32(scales + 4 * (blocked ? first + j : first)));
      store_float(static_cast<float>(part.codes[i]) * scale, entry.data_type, out + item * i);
    }
  }
}

bool write_codebook(const Part& part, const uint8_t* values, uint8_t* out) noexcept {
  const size_t item = part.entry.table.item;
  for (uint64_t i = 0; i < part.count; ++i) {
    const auto code = static_cast<uint32_t>(part.codes[i]);
    if (code >= part.entry.table.count) return false;
    std::memcpy(out + item * i, values + item * code, item);
  }
  return true;
}

void append_field(const Part& part, int width, uint64_t* numbers) noexcept {
  const uint32_t mask = (uint32_t{1} << width) - 1;
  for (uint64_t i = 0; i < part.count; ++i)
    numbers[i] = numbers[i] << width | (static_cast<uint32_t>(part.codes[i]) & mask);
}

void write_planes(const Part& part, const uint64_t* numbers, uint8_t* out) noexcept {
  const Planes& planes = part.entry.planes;
  const int bits = bits_of(planes.source);
  int data_type = part.entry.data_type;
  if (data_type == kComplex64) data_type = kFloat;
  if (data_type == kComplex128) data_type = kDouble;
  store_all(part, part.entry.bits / 8, out, [&](uint64_t i) {
    uint64_t number = numbers[i];
    if (planes.rotated) number = number >> 1 | (number & 1) << (bits - 1);
    return widen(number, planes.source, data_type);
  });
}

}  // namespace onnxcomp::decode
