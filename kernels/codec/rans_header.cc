#include "codec/rans_header.h"

namespace onnxcomp::codec::rans {
namespace {

constexpr int kLowestOrder = 3;
constexpr int kSideBytesOrder = 6;

bool fits_int32(int64_t value) { return value == static_cast<int32_t>(value); }

}  // namespace

void write_header(const Header& header, BitWriter* writer) {
  writer->write(static_cast<uint32_t>(header.lanes_log2), 3);
  writer->write(static_cast<uint32_t>(header.resolution - kSmallestResolution), 3);
  writer->write(static_cast<uint32_t>(header.low_bits), 5);
  writer->write(static_cast<uint32_t>(header.symbols - 1), 8);
  writer->write_signed_golomb(header.lowest, kLowestOrder);
  writer->write(header.escape, 1);
  if (!header.escape) return;
  writer->write(static_cast<uint32_t>(header.escape_order), 5);
  writer->write_golomb(header.side_bytes, kSideBytesOrder);
}

Status read_header(BitReader* reader, Header* header) {
  header->lanes_log2 = static_cast<int>(reader->read(3));
  header->resolution = kSmallestResolution + static_cast<int>(reader->read(3));
  header->low_bits = static_cast<int>(reader->read(5));
  header->symbols = 1 + static_cast<int>(reader->read(8));
  header->lowest = reader->read_signed_golomb(kLowestOrder);
  header->escape = reader->read(1) == 1;
  if (header->escape) {
    header->escape_order = static_cast<int>(reader->read(5));
    header->side_bytes = static_cast<size_t>(reader->read_golomb(kSideBytesOrder));
  }
  if (reader->overrun()) return Status::kTruncated;
  const int64_t unit = int64_t{1} << header->low_bits;
  const bool sane = header->lanes() <= kLanes && header->resolution <= kLargestResolution &&
                    header->low_bits <= kMaxLowBits && header->symbols >= 2 &&
                    fits_int32(header->lowest) && fits_int32(header->lowest * unit) &&
                    fits_int32((header->lowest + header->alphabet()) * unit - 1);
  return sane ? Status::kOk : Status::kBadHeader;
}

void write_escape(int64_t code, const Header& header, BitWriter* writer) {
  const int64_t above = code - (header.lowest + header.alphabet());
  writer->write(above >= 0, 1);
  writer->write_golomb(static_cast<uint64_t>(above >= 0 ? above : header.lowest - 1 - code),
                       header.escape_order);
}

bool read_escape(BitReader* reader, const Header& header, int32_t* code) {
  const bool above = reader->read(1) == 1;
  const auto distance = static_cast<int64_t>(reader->read_golomb(header.escape_order));
  const int64_t value =
      above ? header.lowest + header.alphabet() + distance : header.lowest - 1 - distance;
  const int64_t unit = int64_t{1} << header.low_bits;
  *code = static_cast<int32_t>(value);
  return !reader->overrun() && fits_int32(value) && fits_int32(value * unit) &&
         fits_int32(value * unit + unit - 1);
}

}  // namespace onnxcomp::codec::rans
