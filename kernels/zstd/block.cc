#include "zstd/block.h"

#include <cstring>

#include "zstd/sequences.h"

namespace onnxcomp::zstd {
namespace {

enum LiteralsType { kRawLiterals = 0, kRepeatedLiteral = 1, kCodedLiterals = 2, kTreelessLiterals = 3 };

// Literals of the block: in the workspace, or where they lie in the block.
struct LiteralsHeader {
  int type;
  size_t size;     // unpacked
  size_t packed;
  int streams;
  size_t length;   // of the header itself
};

Status read_literals_header(Bytes block, LiteralsHeader* header) noexcept {
  if (block.size == 0) return Status::kTruncated;
  header->type = block.data[0] & 3;
  const int format = block.data[0] >> 2 & 3;
  const bool coded = header->type >= kCodedLiterals;
  constexpr int kPlainLengths[4] = {1, 2, 1, 3}, kCodedLengths[4] = {3, 3, 4, 5};
  constexpr int kCodedBits[4] = {10, 10, 14, 18};
  header->length = static_cast<size_t>(coded ? kCodedLengths[format] : kPlainLengths[format]);
  if (header->length > block.size) return Status::kTruncated;
  uint64_t fields = 0;
  for (size_t i = 0; i < header->length; ++i) fields |= static_cast<uint64_t>(block.data[i]) << (8 * i);
  if (!coded) {
    header->size = static_cast<size_t>(fields >> (format % 2 == 0 ? 3 : 4));
    header->packed = header->type == kRawLiterals ? header->size : 1;
    return Status::kOk;
  }
  const int bits = kCodedBits[format];
  const uint64_t mask = (uint64_t{1} << bits) - 1;
  header->size = static_cast<size_t>(fields >> 4 & mask);
  header->packed = static_cast<size_t>(fields >> (4 + bits) & mask);
  header->streams = format == 0 ? 1 : 4;
  return Status::kOk;
}

Status decode_four_streams(const HuffmanTable& table, Bytes bytes, uint8_t* out, size_t size) noexcept {
  if (bytes.size < 6) return Status::kTruncated;
  const size_t part = (size + 3) / 4;
  if (3 * part > size) return Status::kBadBlock;
  const uint8_t* jumps = bytes.data;
  bytes = {bytes.data + 6, bytes.size - 6};
  for (int stream = 0; stream < 4; ++stream) {
    const auto packed = stream == 3 ? bytes.size : static_cast<size_t>(jumps[2 * stream] | jumps[2 * stream + 1] << 8);
    if (packed > bytes.size) return Status::kTruncated;
    const size_t count = stream == 3 ? size - 3 * part : part;
    const Status status = decode_huffman(table, {bytes.data, packed}, out, count);
    if (status != Status::kOk) return status;
    bytes = {bytes.data + packed, bytes.size - packed};
    out += count;
  }
  return Status::kOk;
}

// Takes the literals section off the front of `block`.
Status read_literals(Bytes* block, size_t largest, Workspace* work, Bytes* literals) noexcept {
  LiteralsHeader header = {};
  Status status = read_literals_header(*block, &header);
  if (status != Status::kOk) return status;
  if (header.size > largest) return Status::kBadBlock;
  if (header.packed > block->size - header.length) return Status::kTruncated;
  Bytes section = {block->data + header.length, header.packed};
  *block = {section.data + header.packed, block->size - header.length - header.packed};
  *literals = {work->literals, header.size};
  if (header.type == kRawLiterals) {
    *literals = section;
    return Status::kOk;
  }
  if (header.type == kRepeatedLiteral) {
    std::memset(work->literals, section.data[0], header.size);
    return Status::kOk;
  }
  if (header.type == kCodedLiterals) {
    status = read_huffman(&section, &work->scratch, &work->huffman);
    if (status != Status::kOk) return status;
  }
  if (work->huffman.log == 0) return Status::kMissingTable;
  return header.streams == 1 ? decode_huffman(work->huffman, section, work->literals, header.size)
                             : decode_four_streams(work->huffman, section, work->literals, header.size);
}

}  // namespace

void Workspace::reset() noexcept {
  huffman.log = 0;
  literal_lengths.log = offsets.log = match_lengths.log = -1;
  recent[0] = 1;
  recent[1] = 4;
  recent[2] = 8;
}

Status decode_block(Bytes block, size_t largest, Workspace* work, Output* out) noexcept {
  Bytes literals;
  const Status status = read_literals(&block, largest, work, &literals);
  return status == Status::kOk ? decode_sequences(block, literals, largest, work, out) : status;
}

}  // namespace onnxcomp::zstd
