#include "zstd/fse.h"

#include "codec/bits.h"

namespace onnxcomp::zstd {
namespace {

// One probability: the values below `spare` take a bit less.
int read_probability(codec::BitReader* reader, int left) noexcept {
  const int width = highest_bit(static_cast<uint32_t>(left + 1)) + 1;
  const int half = 1 << (width - 1);
  const int spare = 2 * half - 1 - (left + 1);
  const auto low = static_cast<int>(reader->read(width - 1));
  if (low < spare) return low - 1;
  const int value = low + (reader->read(1) != 0 ? half : 0);
  return (value >= half ? value - spare : value) - 1;
}

}  // namespace

Status build_fse(const int16_t* probabilities, int symbols, int log, FseTable* table) noexcept {
  const int size = 1 << log;
  uint16_t next[kMostSymbols];
  int high = size - 1;
  for (int s = 0; s < symbols; ++s) {
    next[s] = probabilities[s] < 0 ? uint16_t{1} : static_cast<uint16_t>(probabilities[s]);
    if (probabilities[s] < 0) table->entries[high--].symbol = static_cast<uint8_t>(s);
  }
  const int step = (size >> 1) + (size >> 3) + 3;
  int position = 0;
  for (int s = 0; s < symbols; ++s) {
    for (int i = 0; i < probabilities[s]; ++i) {
      table->entries[position].symbol = static_cast<uint8_t>(s);
      do {
        position = (position + step) & (size - 1);
      } while (position > high);
    }
  }
  if (position != 0) return Status::kBadTable;
  for (int i = 0; i < size; ++i) {
    FseEntry& entry = table->entries[i];
    const int state = next[entry.symbol]++;
    entry.bits = static_cast<uint8_t>(log - highest_bit(static_cast<uint32_t>(state)));
    entry.base = static_cast<uint16_t>((state << entry.bits) - size);
  }
  table->log = log;
  return Status::kOk;
}

void build_single(uint8_t symbol, FseTable* table) noexcept {
  table->entries[0] = {0, symbol, 0};
  table->log = 0;
}

Status read_fse(int largest_log, int most_symbols, Bytes* bytes, FseTable* table) noexcept {
  codec::BitReader reader(*bytes);
  int16_t probabilities[kMostSymbols];
  const int log = static_cast<int>(reader.read(4)) + 5;
  if (log > largest_log) return Status::kBadTable;
  int left = 1 << log, symbols = 0;
  while (left > 0) {
    if (symbols == most_symbols) return Status::kBadTable;
    const int probability = read_probability(&reader, left);
    left -= probability < 0 ? 1 : probability;
    probabilities[symbols++] = static_cast<int16_t>(probability);
    for (uint32_t zeros = probability == 0 ? 3 : 0; zeros == 3;) {
      zeros = reader.read(2);
      if (symbols + static_cast<int>(zeros) > most_symbols) return Status::kBadTable;
      for (uint32_t i = 0; i < zeros; ++i) probabilities[symbols++] = 0;
    }
  }
  if (reader.overrun()) return Status::kTruncated;
  *bytes = {bytes->data + reader.position(), bytes->size - reader.position()};
  return left == 0 ? build_fse(probabilities, symbols, log, table) : Status::kBadTable;
}

}  // namespace onnxcomp::zstd
