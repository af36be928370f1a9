#include "codec/raw.h"

#include <algorithm>
#include <cstring>

#include "codec/bits.h"
#include "codec/fixed_point.h"

namespace onnxcomp::codec::raw {
namespace {

constexpr int kOffsetOrder = 6;

int width_of(int32_t smallest, int32_t largest) {
  const uint32_t range = static_cast<uint32_t>(largest) - static_cast<uint32_t>(smallest);
  return range == 0 ? 0 : top_bit(range) + 1;
}

uint64_t load_little(const uint8_t* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof word);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  word = __builtin_bswap64(word);
#endif
  return word;
}

size_t byte_count(int64_t count, int width) { return static_cast<size_t>((count * width + 7) / 8); }

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
    const auto [low, high] = std::minmax_element(codes, codes + count);
    smallest = *low;
    largest = *high;
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

Status decode(Bytes payload, int64_t count, int32_t* codes) {
  const int width = payload.data[1];
  if (width > 32) return Status::kUnknownProfile;
  BitReader header({payload.data + 2, payload.size - 2});
  const int64_t offset = header.read_signed_golomb(kOffsetOrder);
  if (header.overrun()) return Status::kTruncated;
  if (offset != static_cast<int32_t>(offset) || !header.padding_is_zero()) return Status::kBadHeader;
  const size_t begin = 2 + header.position(), size = byte_count(count, width);
  if (payload.size - begin < size) return Status::kTruncated;
  if (payload.size - begin > size) return Status::kTrailingBytes;

  const uint8_t* bits = payload.data + begin;
  const auto base = static_cast<uint32_t>(offset);
  const uint32_t mask = width == 32 ? ~uint32_t{0} : (uint32_t{1} << width) - 1;
  // Eight numbers at once, which start at a byte; one has at most 39 bits with those before it.
  int64_t i = 0;
  const auto step = static_cast<size_t>(width);
  for (const uint8_t* group = bits; i + 8 <= count && size >= 8 + step && group <= bits + (size - 8 - step);
       i += 8, group += step)
    for (size_t j = 0; j < 8; ++j) {
      const uint64_t word = load_little(group + j * step / 8);
      codes[i + static_cast<int64_t>(j)] = static_cast<int32_t>(base + (static_cast<uint32_t>(word >> (j * step % 8)) & mask));
    }
  BitReader tail({bits, size});
  if (i < count) {
    const auto bit = static_cast<size_t>(i) * static_cast<size_t>(width);
    tail = BitReader({bits + bit / 8, size - bit / 8});
    tail.read(static_cast<int>(bit % 8));
  }
  for (; i < count; ++i) codes[i] = static_cast<int32_t>(base + tail.read(width));
  return tail.padding_is_zero() || count == 0 ? Status::kOk : Status::kBadHeader;
}

}  // namespace onnxcomp::codec::raw
