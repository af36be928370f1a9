#include "codec/tiles.h"

#include <algorithm>

#include "codec/bits.h"
#include "codec/fixed_point.h"

namespace onnxcomp::codec::rans {
namespace {

constexpr int kClassBits = 4;

int64_t tile_count(int64_t count, int length_log2) { return (count + (int64_t{1} << length_log2) - 1) >> length_log2; }

uint32_t middle_symbol(const Alphabet& alphabet) {
  uint64_t total = 0, sum = 0;
  for (int s = 0; s < alphabet.header.alphabet(); ++s) total += alphabet.counts[static_cast<size_t>(s)];
  uint32_t middle = 0;
  while (2 * (sum + alphabet.counts[middle]) < total) sum += alphabet.counts[middle++];
  return middle;
}

// Summed distance of the symbols from the middle, of every tile of this length.
std::vector<int64_t> distances(const std::vector<uint16_t>& symbols, uint32_t middle, int length_log2) {
  std::vector<int64_t> sums;
  for (size_t begin = 0; begin < symbols.size(); begin += size_t{1} << length_log2) {
    const size_t end = std::min(symbols.size(), begin + (size_t{1} << length_log2));
    int32_t sum = 0;
    for (size_t i = begin; i < end; ++i) {
      const int32_t distance = symbols[i] - static_cast<int32_t>(middle);
      sum += distance < 0 ? -distance : distance;
    }
    sums.push_back(sum);
  }
  return sums;
}

// Four tiles become one.
std::vector<int64_t> merged(const std::vector<int64_t>& sums) {
  std::vector<int64_t> result((sums.size() + 3) / 4, 0);
  for (size_t i = 0; i < sums.size(); ++i) result[i / 4] += sums[i];
  return result;
}

// log2 of the tiles' mean distances; weighted by length, what such tiles save is less their sum.
int64_t spread_logarithms(const std::vector<int64_t>& sums, int64_t count, int length_log2,
                          std::vector<int32_t>* logs) {
  logs->clear();
  int64_t total = 0;
  for (size_t tile = 0; tile < sums.size(); ++tile) {
    const int64_t begin = static_cast<int64_t>(tile) << length_log2;
    const int64_t codes = std::min(count - begin, int64_t{1} << length_log2);
    // A sixteenth more, so that a tile of zeros has a logarithm.
    const int64_t log = log2_fixed(static_cast<uint64_t>(16 * sums[tile] + codes)) -
                        log2_fixed(static_cast<uint64_t>(16 * codes));
    logs->push_back(static_cast<int32_t>(log));
    total += log * codes;
  }
  return total;
}

}  // namespace

Tiles choose_tiles(const std::vector<uint16_t>& symbols, const Alphabet& alphabet, Geometry geometry) {
  Tiles tiles;
  const uint32_t middle = middle_symbol(alphabet);
  const int64_t count = geometry.count();
  std::vector<int32_t> logs, best_logs;
  std::vector<int64_t> sums;
  int64_t best = 0;
  for (int length_log2 = 6; length_log2 <= 12; length_log2 += 2) {
    if ((int64_t{4} << length_log2) > count) break;
    sums = sums.empty() ? distances(symbols, middle, length_log2) : merged(sums);
    // Four bits and about one more for the chance are what a tile costs.
    const int64_t cost = spread_logarithms(sums, count, length_log2, &logs) +
                         5 * kOne * static_cast<int64_t>(logs.size());
    if (best_logs.empty() || cost < best) {
      best = cost;
      best_logs = logs;
      tiles.length_log2 = length_log2;
    }
  }
  if (best_logs.empty()) return tiles;
  const auto [lowest, highest] = std::minmax_element(best_logs.begin(), best_logs.end());
  // Half an octave a class: a spread wrong by a quarter costs 0.02 bits.
  const int32_t step = std::max<int32_t>(static_cast<int32_t>(kOne) / 4, (*highest - *lowest) / kMaxTileClasses + 1);
  const int32_t base = *lowest;
  for (const int32_t log : best_logs) tiles.class_of.push_back(static_cast<uint8_t>((log - base) / step));
  // Classes nobody has are not written.
  std::vector<int> used(kMaxTileClasses, -1);
  for (const uint8_t c : tiles.class_of) used[c] = 0;
  for (int& number : used) {
    if (number == 0) number = tiles.classes++;
  }
  for (uint8_t& c : tiles.class_of) c = static_cast<uint8_t>(used[c]);
  return tiles;
}

void write_tiles(const Tiles& tiles, BitWriter* writer) {
  writer->write(static_cast<uint32_t>(tiles.length_log2 - kSmallestTileLog2), 4);
  writer->write(static_cast<uint32_t>(tiles.classes - 1), kClassBits);
  const int width = top_bit(static_cast<uint64_t>(2 * tiles.classes - 1));
  for (const uint8_t c : tiles.class_of) writer->write(c, width);
}

Status read_tiles(BitReader* reader, int64_t count, Tiles* tiles) {
  tiles->length_log2 = kSmallestTileLog2 + static_cast<int>(reader->read(4));
  tiles->classes = 1 + static_cast<int>(reader->read(kClassBits));
  const int width = top_bit(static_cast<uint64_t>(2 * tiles->classes - 1));
  tiles->class_of.resize(static_cast<size_t>(tile_count(count, tiles->length_log2)));
  for (uint8_t& c : tiles->class_of) {
    c = static_cast<uint8_t>(reader->read(width));
    if (c >= tiles->classes) return Status::kBadHeader;
  }
  return reader->overrun() ? Status::kTruncated : Status::kOk;
}

}  // namespace onnxcomp::codec::rans
