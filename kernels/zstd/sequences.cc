#include "zstd/sequences.h"

#include <cstring>
#include <utility>

namespace onnxcomp::zstd {
namespace {

// A code stands for base + as many bits as it says.
struct Length {
  uint32_t base;
  uint8_t bits;
};

constexpr Length kLiteralLengths[] = {
    {0, 0},     {1, 0},     {2, 0},     {3, 0},      {4, 0},      {5, 0},      {6, 0},      {7, 0},     {8, 0},
    {9, 0},     {10, 0},    {11, 0},    {12, 0},     {13, 0},     {14, 0},     {15, 0},     {16, 1},    {18, 1},
    {20, 1},    {22, 1},    {24, 2},    {28, 2},     {32, 3},     {40, 3},     {48, 4},     {64, 6},    {128, 7},
    {256, 8},   {512, 9},   {1024, 10}, {2048, 11},  {4096, 12},  {8192, 13},  {16384, 14}, {32768, 15}, {65536, 16}};
constexpr Length kMatchLengths[] = {
    {3, 0},    {4, 0},    {5, 0},     {6, 0},     {7, 0},     {8, 0},     {9, 0},      {10, 0},     {11, 0},
    {12, 0},   {13, 0},   {14, 0},    {15, 0},    {16, 0},    {17, 0},    {18, 0},     {19, 0},     {20, 0},
    {21, 0},   {22, 0},   {23, 0},    {24, 0},    {25, 0},    {26, 0},    {27, 0},     {28, 0},     {29, 0},
    {30, 0},   {31, 0},   {32, 0},    {33, 0},    {34, 0},    {35, 1},    {37, 1},     {39, 1},     {41, 1},
    {43, 2},   {47, 2},   {51, 3},    {59, 3},    {67, 4},    {83, 4},    {99, 5},     {131, 7},    {259, 8},
    {515, 9},  {1027, 10}, {2051, 11}, {4099, 12}, {8195, 13}, {16387, 14}, {32771, 15}, {65539, 16}};
constexpr int16_t kUsualLiteralLengths[] = {4, 3, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1, 1, 1, 2,  2,
                                            2, 2, 2, 2, 2, 2, 2, 3, 2, 1, 1, 1, 1, 1, -1, -1, -1, -1};
constexpr int16_t kUsualOffsets[] = {1, 1, 1, 1, 1, 1, 2, 2, 2, 1, 1, 1, 1, 1,  1,
                                     1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1};
constexpr int16_t kUsualMatchLengths[] = {1, 4, 3, 2, 2, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1,  1,  1,  1,
                                          1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,  1,  1,  1,
                                          1, 1, 1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1};

// What is fixed about one of the three kinds of codes.
struct Kind {
  int largest_log;
  int symbols;
  const int16_t* usual;
  int usual_symbols;
  int usual_log;
};

constexpr Kind kLiteralLengthKind = {9, 36, kUsualLiteralLengths, 36, 6};
constexpr Kind kOffsetKind = {8, 32, kUsualOffsets, 29, 5};
constexpr Kind kMatchLengthKind = {9, 53, kUsualMatchLengths, 53, 6};

Status read_table(int mode, const Kind& kind, Bytes* section, FseTable* table) noexcept {
  switch (mode) {
    case 0:
      return build_fse(kind.usual, kind.usual_symbols, kind.usual_log, table);
    case 1:
      if (section->size == 0) return Status::kTruncated;
      if (section->data[0] >= kind.symbols) return Status::kBadTable;
      build_single(section->data[0], table);
      *section = {section->data + 1, section->size - 1};
      return Status::kOk;
    case 2:
      return read_fse(kind.largest_log, kind.symbols, section, table);
    default:
      return table->log < 0 ? Status::kMissingTable : Status::kOk;
  }
}

Status read_count(Bytes* section, uint32_t* count) noexcept {
  if (section->size == 0) return Status::kTruncated;
  const uint32_t first = section->data[0];
  const size_t length = first < 128 ? 1 : first < 255 ? 2 : 3;
  if (section->size < length) return Status::kTruncated;
  *count = first;
  if (length == 2) *count = ((first - 128) << 8) + section->data[1];
  if (length == 3) *count = section->data[1] + (static_cast<uint32_t>(section->data[2]) << 8) + 0x7f00;
  *section = {section->data + length, section->size - length};
  return Status::kOk;
}

// The offset that a value stands for: 1 to 3 repeat one of the last three. Zero is none.
uint32_t resolve_offset(uint64_t value, bool no_literals, uint32_t* recent) noexcept {
  uint32_t offset;
  uint64_t older = value > 3 ? 3 : value - 1 + (no_literals ? 1 : 0);  // how far down the list
  if (value > 3)
    offset = static_cast<uint32_t>(value - 3);
  else
    offset = older == 3 ? recent[0] - 1 : recent[older];
  if (older >= 2) recent[2] = recent[1];
  if (older >= 1) recent[1] = recent[0];
  recent[0] = offset;
  return offset;
}

class Copier {
 public:
  Copier(Bytes literals, size_t largest, Output* out) : literals_(literals), out_(out) {
    const size_t room = out->size - out->at;
    end_ = out->at + (room < largest ? room : largest);
  }

  bool copy_literals(size_t count) noexcept {
    if (count > literals_.size || count > end_ - out_->at) return false;
    if (count > 0) std::memcpy(out_->data + out_->at, literals_.data, count);
    literals_ = {literals_.data + count, literals_.size - count};
    out_->at += count;
    return true;
  }

  bool copy_match(size_t offset, size_t count) noexcept {
    if (offset == 0 || offset > out_->at || count > end_ - out_->at) return false;
    uint8_t* to = out_->data + out_->at;
    const uint8_t* from = to - offset;
    if (offset >= count) {
      std::memcpy(to, from, count);
    } else {  // repeats what it writes itself
      for (size_t i = 0; i < count; ++i) to[i] = from[i];
    }
    out_->at += count;
    return true;
  }

  bool finish() noexcept { return copy_literals(literals_.size); }

 private:
  Bytes literals_;
  Output* out_;
  size_t end_;
};

Status copy_sequences(Bytes stream, uint32_t count, Workspace* work, Copier* copier) noexcept {
  BackwardBits bits;
  if (!bits.open(stream)) return Status::kBadStream;
  uint32_t literal_state = bits.read(work->literal_lengths.log);
  uint32_t offset_state = bits.read(work->offsets.log);
  uint32_t match_state = bits.read(work->match_lengths.log);
  for (uint32_t i = 0; i < count; ++i) {
    const FseEntry literal = work->literal_lengths.entries[literal_state];
    const FseEntry match = work->match_lengths.entries[match_state];
    const FseEntry far = work->offsets.entries[offset_state];
    const uint64_t value = (uint64_t{1} << far.symbol) + bits.read(far.symbol);
    const Length match_length = kMatchLengths[match.symbol], literal_length = kLiteralLengths[literal.symbol];
    const uint32_t copied = match_length.base + bits.read(match_length.bits);
    const uint32_t literals = literal_length.base + bits.read(literal_length.bits);
    const uint32_t offset = resolve_offset(value, literals == 0, work->recent);
    if (i + 1 < count) {
      literal_state = literal.base + bits.read(literal.bits);
      match_state = match.base + bits.read(match.bits);
      offset_state = far.base + bits.read(far.bits);
    }
    if (bits.left() < 0) return Status::kBadStream;
    if (!copier->copy_literals(literals) || !copier->copy_match(offset, copied)) return Status::kBadSequence;
  }
  return bits.left() == 0 ? Status::kOk : Status::kBadStream;
}

}  // namespace

Status decode_sequences(Bytes section, Bytes literals, size_t largest, Workspace* work, Output* out) noexcept {
  Copier copier(literals, largest, out);
  uint32_t count = 0;
  Status status = read_count(&section, &count);
  if (status != Status::kOk) return status;
  if (count == 0) {
    if (section.size != 0) return Status::kBadBlock;
    return copier.finish() ? Status::kOk : Status::kBadSequence;
  }
  if (section.size == 0) return Status::kTruncated;
  const int modes = section.data[0];
  if ((modes & 3) != 0) return Status::kBadHeader;
  section = {section.data + 1, section.size - 1};
  const Kind* kinds[] = {&kLiteralLengthKind, &kOffsetKind, &kMatchLengthKind};
  FseTable* tables[] = {&work->literal_lengths, &work->offsets, &work->match_lengths};
  for (int i = 0; i < 3; ++i) {
    status = read_table(modes >> (6 - 2 * i) & 3, *kinds[i], &section, tables[i]);
    if (status != Status::kOk) return status;
  }
  status = copy_sequences(section, count, work, &copier);
  if (status != Status::kOk) return status;
  return copier.finish() ? Status::kOk : Status::kBadSequence;
}

}  // namespace onnxcomp::zstd
