#include "codec/raw.h"

#include <algorithm>

#include "codec/bits.h"
#include "codec/extremes.h"
#include "codec/fixed_point.h"

namespace onnxcomp::codec::raw {
namespace {

constexpr int kOffsetOrder = 6;

int width_of(int32_t smallest, int32_t largest) {
  const uint32_t range = static_cast<uint32_t>(largest) - static_cast<uint32_t>(smallest);
  return range == 0 ? 0 : top_bit(range) + 1;
}

size_t byte_count(int64_t count, int width) { return static_cast<size_t>((count * width + 7) / 8); }

uint32_t number_at(const PackedBits& bits, int64_t index) {
  const auto begin = static_cast<size_t>(index) * static_cast<size_t>(bits.width);
  const auto end = begin + static_cast<size_t>(bits.width);
  uint64_t word = 0;
  for (size_t byte = begin / 8; byte * 8 < end; ++byte) word |= uint64_t{bits.data[byte]} << (byte * 8 - begin / 8 * 8);
  return static_cast<uint32_t>(word >> begin % 8 & ((uint64_t{1} << bits.width) - 1));
}

void append_one_by_one(const PackedBits& bits, int64_t first, int64_t count, int width, bool rotated,
                       uint32_t* numbers) {
  const uint64_t mask = (uint64_t{1} << width) - 1;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t field = bits.base + number_at(bits, first + i);
    const uint64_t before = width == 32 ? 0 : uint64_t{numbers[i]} << width;
    const auto number = static_cast<uint32_t>(before | (field & mask));
    numbers[i] = rotated ? number >> 1 | number << 31 : number;
  }
}

}  // namespace

size_t encoded_size(int32_t smallest, int32_t largest, int64_t count) {
  const uint64_t folded = smallest < 0 ? ~static_cast<uint64_t>(int64_t{smallest}) * 2 + 1
                                       : static_cast<uint64_t>(smallest) * 2;
  const auto offset_bits = static_cast<size_t>(golomb_length(folded, kOffsetOrder));
  return 2 + (offset_bits + 7) / 8 + byte_count(count, width_of(smallest, largest));
}

std::vector<uint8_t> encode(const int32_t* codes, int64_t count) {
  int32_t smallest = 0, largest = 0;
  if (count > 0) {
    const Extremes extremes = extremes_of(codes, count);
    smallest = extremes.smallest;
    largest = extremes.largest;
  }
  const int width = width_of(smallest, largest);
  BitWriter offset;
  offset.write_signed_golomb(smallest, kOffsetOrder);
  const std::vector<uint8_t> offset_bytes = offset.take();
  BitWriter writer;
  writer.write(0, 8);
  writer.write(static_cast<uint32_t>(width), 8);
  for (const uint8_t byte : offset_bytes) writer.write(byte, 8);
  for (int64_t i = 0; i < count; ++i)
    writer.write(static_cast<uint32_t>(codes[i]) - static_cast<uint32_t>(smallest), width);
  return writer.take();
}

Status open(Bytes payload, int64_t count, PackedBits* bits) {
  const int width = payload.data[1];
  if (width > 32) return Status::kUnknownProfile;
  BitReader header({payload.data + 2, payload.size - 2});
  const int64_t offset = header.read_signed_golomb(kOffsetOrder);
  if (header.overrun()) return Status::kTruncated;
  if (offset != static_cast<int32_t>(offset) || !header.padding_is_zero()) return Status::kBadHeader;
  const size_t begin = 2 + header.position(), size = byte_count(count, width);
  if (payload.size - begin < size) return Status::kTruncated;
  if (payload.size - begin > size) return Status::kTrailingBytes;
  const int64_t used = count * width % 8;
  if (used > 0 && payload.data[payload.size - 1] >> used != 0) return Status::kBadHeader;
  *bits = {payload.data + begin, size, width, static_cast<uint32_t>(offset)};
  return Status::kOk;
}

void append(const PackedBits& bits, int64_t first, int64_t count, const LaneKernel& kernel, int width,
            bool rotated, uint32_t* numbers) {
  const int64_t head = std::min(count, (8 - first % 8) % 8);  // whole bytes begin behind it
  append_one_by_one(bits, first, head, width, rotated, numbers);
  const int64_t done = head + kernel.append_bits(bits, first + head, count - head, width, rotated, numbers + head);
  append_one_by_one(bits, first + done, count - done, width, rotated, numbers + done);
}

Status decode(Bytes payload, int64_t count, const LaneKernel& kernel, int32_t* codes) {
  PackedBits bits;
  const Status status = open(payload, count, &bits);
  if (status == Status::kOk) append(bits, 0, count, kernel, 32, false, reinterpret_cast<uint32_t*>(codes));
  return status;
}

}  // namespace onnxcomp::codec::raw
