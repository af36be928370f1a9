#include "codec/lane_decoder.h"

#include <algorithm>
#include <cstring>

#include "codec/rans_header.h"

namespace onnxcomp::codec::rans {
namespace {

constexpr int64_t kBlock = 4096;  // stays in the first cache between decoding and scaling

}  // namespace

LaneDecoder::LaneDecoder(const Header& header, const FrequencyTable& table, Geometry geometry,
                         const LaneKernel& kernel, const Sink& sink)
    : header_(header),
      geometry_(geometry),
      kernel_(kernel),
      sink_(sink),
      entries_(slot_entries(table)),
      positions_(header.escape ? kBlock : 0) {}

Status LaneDecoder::open(Bytes rest) {
  const auto low_bytes = static_cast<size_t>((geometry_.count() * header_.low_bits + 7) / 8);
  const auto state_bytes = static_cast<size_t>(header_.lanes()) * 4;
  if (header_.side_bytes > rest.size || low_bytes > rest.size - header_.side_bytes ||
      state_bytes > rest.size - header_.side_bytes - low_bytes)
    return Status::kTruncated;
  side_ = BitReader({rest.data, header_.side_bytes});
  low_ = BitReader({rest.data + header_.side_bytes, low_bytes});
  const uint8_t* bytes = rest.data + header_.side_bytes + low_bytes;
  for (int lane = 0; lane < header_.lanes(); ++lane, bytes += 4) {
    lanes_.state[lane] = bytes[0] | static_cast<uint32_t>(bytes[1]) << 8 |
                         static_cast<uint32_t>(bytes[2]) << 16 | static_cast<uint32_t>(bytes[3]) << 24;
  }
  lanes_.cursor = bytes;
  lanes_.end = rest.data + rest.size;
  return Status::kOk;
}

Status LaneDecoder::decode(int c, int64_t begin, int64_t count) {
  for (int64_t done = 0; done < count; done += kBlock) {
    const Status status = decode_block(c, begin + done, std::min(kBlock, count - done));
    if (status != Status::kOk) return status;
  }
  return Status::kOk;
}

Status LaneDecoder::decode_block(int c, int64_t begin, int64_t count) {
  const LaneTable table = {entries_.data() + (static_cast<size_t>(c) << header_.resolution),
                           header_.resolution, static_cast<int32_t>(header_.lowest),
                           header_.escape ? static_cast<uint32_t>(header_.symbols - 1) << 24 : kNoEscape};
  Escapes escapes = {positions_.data(), 0};
  int32_t* codes = sink_.codes + begin;
  int64_t done = 0;
  if (header_.lanes() == kLanes)
    done = kLanes * kernel_.decode_groups(&lanes_, table, count / kLanes, codes, &escapes);
  Status status = decode_one_by_one(table, begin, done, count, &escapes);
  if (status != Status::kOk) return status;
  for (int64_t i = 0; i < escapes.count; ++i) {
    if (!read_escape(&side_, header_, codes + escapes.positions[i])) return Status::kBadEscape;
  }
  finish(begin, count);
  return Status::kOk;
}

Status LaneDecoder::decode_rows(const RowModel& model) {
  RowGroups groups(model, geometry_, header_.lanes());
  const RowTable table = groups.table(entries_.data(), header_);
  const int64_t length = geometry_.row_length();
  for (int64_t first = 0; first < geometry_.rows; first += header_.lanes()) {
    const int active = static_cast<int>(std::min<int64_t>(header_.lanes(), geometry_.rows - first));
    groups.begin(active);
    const RowGroup group = groups.group();
    kernel_.decode_rows(&lanes_, table, group, &groups.rows);
    if (!decode_rows_checked(&lanes_, table, group, &groups.rows)) return Status::kTruncated;
    kernel_.spread_rows(group, static_cast<int32_t>(header_.lowest), sink_.codes + first * length);
    const int escape = header_.symbols - 1;
    if (header_.escape && std::memchr(group.symbols, escape, static_cast<size_t>(length * kLanes)) != nullptr) {
      const Status status = fill_escapes(first * length, active * length);
      if (status != Status::kOk) return status;
    }
    finish(first * length, active * length);
    if (active == header_.lanes()) groups.end();
  }
  return Status::kOk;
}

// Rows are decoded side by side, but their escaped codes lie in C order.
Status LaneDecoder::fill_escapes(int64_t begin, int64_t count) {
  const auto escape = static_cast<int32_t>(header_.lowest + header_.alphabet());
  int32_t* codes = sink_.codes + begin;
  for (int64_t block = 0; block < count; block += kLanes) {
    const int64_t end = std::min<int64_t>(count, block + kLanes);
    int32_t any = 0;
    for (int64_t i = block; i < end; ++i) any |= codes[i] == escape;
    if (!any) continue;
    for (int64_t i = block; i < end; ++i) {
      if (codes[i] == escape && !read_escape(&side_, header_, codes + i)) return Status::kBadEscape;
    }
  }
  return Status::kOk;
}

void LaneDecoder::finish(int64_t begin, int64_t count) {
  int32_t* codes = sink_.codes + begin;
  if (header_.low_bits > 0) {
    for (int64_t i = 0; i < count; ++i) {
      const uint32_t high = static_cast<uint32_t>(codes[i]) << header_.low_bits;
      codes[i] = static_cast<int32_t>(high | low_.read(header_.low_bits));
    }
  }
  if (sink_.scales != nullptr) scale(begin, count);
  if (sink_.finished != nullptr) sink_.finished(sink_.context, begin, count);
}

// Few lanes, a tail, or the last words of a payload.
Status LaneDecoder::decode_one_by_one(const LaneTable& table, int64_t begin, int64_t first,
                                      int64_t count, Escapes* escapes) {
  const uint32_t mask = (uint32_t{1} << table.resolution) - 1;
  int32_t* codes = sink_.codes + begin;
  for (int64_t i = first; i < count; ++i) {
    uint32_t& state = lanes_.state[(begin + i) & (header_.lanes() - 1)];
    const uint32_t entry = table.entries[state & mask];
    codes[i] = static_cast<int32_t>(static_cast<uint32_t>(table.lowest) + (entry >> 24));
    if (entry >= table.first_escape) escapes->positions[escapes->count++] = static_cast<uint32_t>(i);
    state = (entry >> 12 & 0xfff) * (state >> table.resolution) + (entry & 0xfff);
    if (state >= kLowestState) continue;
    if (lanes_.end - lanes_.cursor < 2) return Status::kTruncated;
    state = state << 16 | lanes_.cursor[0] | static_cast<uint32_t>(lanes_.cursor[1]) << 8;
    lanes_.cursor += 2;
  }
  return Status::kOk;
}

void LaneDecoder::scale(int64_t begin, int64_t count) {
  const int64_t end = begin + count;
  if (sink_.scale_count == 1) {
    kernel_.scale_in_place(sink_.codes + begin, count, sink_.scales[0]);
    return;
  }
  for (int64_t at = begin; at < end;) {
    const int64_t row = at / geometry_.row_length();
    const int64_t next = std::min(end, (row + 1) * geometry_.row_length());
    kernel_.scale_in_place(sink_.codes + at, next - at, sink_.scales[row]);
    at = next;
  }
}

Status LaneDecoder::close() const {
  for (int lane = 0; lane < header_.lanes(); ++lane) {
    if (lanes_.state[lane] != kLowestState) return Status::kBadState;
  }
  if (lanes_.cursor != lanes_.end) return Status::kTrailingBytes;
  if (side_.overrun() || side_.position() != header_.side_bytes || !side_.padding_is_zero())
    return Status::kBadEscape;
  return low_.padding_is_zero() ? Status::kOk : Status::kBadHeader;
}

}  // namespace onnxcomp::codec::rans
