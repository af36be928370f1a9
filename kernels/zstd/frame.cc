#include "zstd/frame.h"

#include <cstring>

#include "zstd/xxh64.h"

namespace onnxcomp::zstd {
namespace {

constexpr uint32_t kMagic = 0xfd2fb528;
enum BlockType { kRaw = 0, kRepeated = 1, kCompressed = 2 };

struct Header {
  size_t largest_block;
  bool has_checksum;
};

uint64_t little_endian(const uint8_t* at, size_t bytes) noexcept {
  uint64_t value = 0;
  for (size_t i = 0; i < bytes; ++i) value |= static_cast<uint64_t>(at[i]) << (8 * i);
  return value;
}

// Takes the frame header off the front.
Status read_header(Bytes* frame, size_t size, Header* header) noexcept {
  if (frame->size < 5) return Status::kTruncated;
  if (little_endian(frame->data, 4) != kMagic) return Status::kNoFrame;
  const int flags = frame->data[4];
  if ((flags & 8) != 0) return Status::kBadHeader;
  const bool single_segment = (flags & 32) != 0;
  constexpr size_t kIdBytes[] = {0, 1, 2, 4}, kSizeBytes[] = {0, 2, 4, 8};
  const size_t window_bytes = single_segment ? 0 : 1, id_bytes = kIdBytes[flags & 3];
  const size_t size_bytes = flags >> 6 == 0 && single_segment ? 1 : kSizeBytes[flags >> 6];
  const uint8_t* fields = frame->data + 5;
  const size_t length = window_bytes + id_bytes + size_bytes;
  if (length > frame->size - 5) return Status::kTruncated;
  if (little_endian(fields + window_bytes, id_bytes) != 0) return Status::kDictionary;
  if (size_bytes > 0) {
    const uint64_t declared = little_endian(fields + window_bytes + id_bytes, size_bytes);
    if (declared + (size_bytes == 2 ? 256 : 0) != size) return Status::kWrongSize;
  }
  uint64_t window = size;
  if (!single_segment) {
    const uint64_t base = uint64_t{1} << (10 + (fields[0] >> 3));
    window = base + base / 8 * (fields[0] & 7);
  }
  header->largest_block = window < kLargestBlock ? static_cast<size_t>(window) : kLargestBlock;
  header->has_checksum = (flags & 4) != 0;
  *frame = {fields + length, frame->size - 5 - length};
  return Status::kOk;
}

// Takes a block off the front.
Status read_block(Bytes* frame, size_t largest, Workspace* work, Output* out, bool* last) noexcept {
  if (frame->size < 3) return Status::kTruncated;
  const auto fields = static_cast<uint32_t>(little_endian(frame->data, 3));
  const uint32_t type = fields >> 1 & 3;
  const size_t size = fields >> 3, packed = type == kRepeated ? 1 : size;
  *last = (fields & 1) != 0;
  if (size > largest || type > kCompressed) return Status::kBadBlock;
  if (packed > frame->size - 3) return Status::kTruncated;
  const uint8_t* data = frame->data + 3;
  *frame = {data + packed, frame->size - 3 - packed};
  if (type == kCompressed) return decode_block({data, packed}, largest, work, out);
  if (size > out->size - out->at) return Status::kWrongSize;
  if (size == 0) return Status::kOk;
  if (type == kRaw)
    std::memcpy(out->data + out->at, data, size);
  else
    std::memset(out->data + out->at, data[0], size);
  out->at += size;
  return Status::kOk;
}

}  // namespace

Status decode_frame(Bytes frame, uint8_t* out, size_t size, Workspace* work) noexcept {
  Header header = {};
  Status status = read_header(&frame, size, &header);
  if (status != Status::kOk) return status;
  Output output = {out, size, 0};
  work->reset();
  for (bool last = false; !last;) {
    status = read_block(&frame, header.largest_block, work, &output, &last);
    if (status != Status::kOk) return status;
  }
  if (output.at != size) return Status::kWrongSize;
  if (header.has_checksum) {
    if (frame.size < 4) return Status::kTruncated;
    if (little_endian(frame.data, 4) != (xxh64({out, size}) & 0xffffffff)) return Status::kBadChecksum;
    frame = {frame.data + 4, frame.size - 4};
  }
  return frame.size == 0 ? Status::kOk : Status::kTrailingBytes;
}

}  // namespace onnxcomp::zstd
