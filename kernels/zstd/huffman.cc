#include "zstd/huffman.h"

namespace onnxcomp::zstd {
namespace {

constexpr int kMostWeights = 255;  // of 256 symbols the last one follows from the others

// Two states take turns until the stream is used up.
Status read_weights(Bytes bytes, FseTable* table, uint8_t* weights, int* count) noexcept {
  const Status status = read_fse(6, kLongestCode + 2, &bytes, table);
  if (status != Status::kOk) return status;
  BackwardBits bits;
  if (!bits.open(bytes)) return Status::kBadStream;
  uint32_t states[2];
  for (uint32_t& state : states) state = bits.read(table->log);
  if (bits.left() < 0) return Status::kBadStream;
  for (int i = 0; i + 1 < kMostWeights; ++i) {
    const FseEntry entry = table->entries[states[i & 1]];
    weights[i] = entry.symbol;
    states[i & 1] = entry.base + bits.read(entry.bits);
    if (bits.left() < 0) {
      weights[i + 1] = table->entries[states[~i & 1]].symbol;
      *count = i + 2;
      return Status::kOk;
    }
  }
  return Status::kBadStream;
}

// Weight w takes 2^(w - 1) of 2^log entries, the lightest symbols come first.
void build(const uint8_t* weights, int count, int log, HuffmanTable* table) noexcept {
  int starts[kLongestCode + 2] = {};  // of weight w, where its next entry goes
  for (int s = 0; s < count; ++s) {
    if (weights[s] > 0) starts[weights[s] + 1] += 1 << (weights[s] - 1);
  }
  for (int weight = 2; weight <= kLongestCode; ++weight) starts[weight] += starts[weight - 1];
  for (int s = 0; s < count; ++s) {
    if (weights[s] == 0) continue;
    const HuffmanTable::Entry entry = {static_cast<uint8_t>(s), static_cast<uint8_t>(log + 1 - weights[s])};
    for (int i = 0; i < 1 << (weights[s] - 1); ++i) table->entries[starts[weights[s]]++] = entry;
  }
  table->log = log;
}

}  // namespace

Status read_huffman(Bytes* bytes, FseTable* scratch, HuffmanTable* table) noexcept {
  table->log = 0;
  if (bytes->size == 0) return Status::kTruncated;
  uint8_t weights[kMostWeights + 1];
  const int head = bytes->data[0];
  int count = head - 127;
  const auto length = static_cast<size_t>(head < 128 ? head : (count + 1) / 2);
  if (length > bytes->size - 1) return Status::kTruncated;
  const uint8_t* data = bytes->data + 1;
  if (head < 128) {
    const Status status = read_weights({data, length}, scratch, weights, &count);
    if (status != Status::kOk) return status;
  } else {
    for (int i = 0; i < count; ++i) weights[i] = static_cast<uint8_t>(data[i / 2] >> (i % 2 != 0 ? 0 : 4) & 15);
  }
  *bytes = {data + length, bytes->size - 1 - length};

  uint32_t total = 0;
  for (int s = 0; s < count; ++s) {
    if (weights[s] > kLongestCode) return Status::kBadTable;
    if (weights[s] > 0) total += uint32_t{1} << (weights[s] - 1);
  }
  const int log = highest_bit(total) + 1;
  if (total == 0 || log > kLongestCode) return Status::kBadTable;
  const uint32_t rest = (uint32_t{1} << log) - total;  // what the last symbol takes
  if ((rest & (rest - 1)) != 0) return Status::kBadTable;
  weights[count] = static_cast<uint8_t>(highest_bit(rest) + 1);
  build(weights, count + 1, log, table);
  return Status::kOk;
}

Status decode_huffman(const HuffmanTable& table, Bytes stream, uint8_t* out, size_t count) noexcept {
  BackwardBits bits;
  if (!bits.open(stream)) return Status::kBadStream;
  for (size_t i = 0; i < count; ++i) {
    const HuffmanTable::Entry entry = table.entries[bits.peek(table.log)];
    out[i] = entry.symbol;
    bits.skip(entry.bits);
  }
  return bits.left() == 0 ? Status::kOk : Status::kBadStream;
}

}  // namespace onnxcomp::zstd
