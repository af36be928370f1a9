#include "codec/frequency_table.h"

#include <algorithm>

#include "codec/fixed_point.h"

namespace onnxcomp::codec {
namespace {

// kLogarithms[f] = log2(f) with 16 fractional bits.
const int64_t* logarithms() {
  static const std::vector<int64_t> table = [] {
    std::vector<int64_t> logs((1 << kLargestResolution) + 1, 0);
    for (size_t f = 1; f < logs.size(); ++f) logs[f] = log2_fixed(f);
    return logs;
  }();
  return table.data();
}

// Bits gained (negative: lost) when a symbol seen `count` times goes from f to f + step slots.
int64_t gain(uint32_t count, int f, int step) {
  return static_cast<int64_t>(count) * (logarithms()[f + step] - logarithms()[f]);
}

int golomb_order(int previous_frequency) {
  return previous_frequency < 2 ? 0 : top_bit(static_cast<uint64_t>(previous_frequency));
}

}  // namespace

std::vector<uint32_t> slot_entries(const FrequencyTable& table) {
  std::vector<uint32_t> entries(static_cast<size_t>(table.classes()) << table.resolution);
  size_t next = 0;  // ends at the size: a class's frequencies sum to 2^resolution
  for (int c = 0; c < table.classes(); ++c) {
    const uint16_t* frequency = table.of_class(c);
    for (int symbol = 0; symbol < table.symbols; ++symbol) {
      const uint32_t f = std::min(uint32_t{frequency[symbol]}, static_cast<uint32_t>(entries.size() - next));
      const uint32_t entry = static_cast<uint32_t>(symbol) << 24 | f << 12;
      for (uint32_t bias = 0; bias < f; ++bias) entries[next + bias] = entry | bias;
      next += f;
    }
  }
  return entries;
}

void fit_frequencies(const uint32_t* counts, int symbols, int resolution, uint16_t* frequency) {
  const int slots = 1 << resolution;
  uint64_t total = 0;
  for (int s = 0; s < symbols; ++s) total += counts[s];
  int used = 0;
  for (int s = 0; s < symbols; ++s) {
    const uint64_t share = total == 0 ? 0 : (counts[s] * static_cast<uint64_t>(slots) + total / 2) / total;
    const int least = counts[s] > 0 ? 1 : 0;
    frequency[s] = static_cast<uint16_t>(std::clamp<int64_t>(static_cast<int64_t>(share), least, slots - 1));
    used += frequency[s];
  }
  if (total == 0) {
    frequency[0] = static_cast<uint16_t>(slots - 1);
    used = slots - 1;
  }
  while (used > slots) {  // take where it costs least
    int best = -1;
    for (int s = 0; s < symbols; ++s) {
      if (frequency[s] < 2) continue;
      if (best < 0 || gain(counts[s], frequency[s], -1) > gain(counts[best], frequency[best], -1)) best = s;
    }
    --frequency[best];
    --used;
  }
  while (used < slots) {  // give where it helps most
    int best = -1;
    for (int s = 0; s < symbols; ++s) {
      if (frequency[s] == slots - 1) continue;
      if (frequency[s] == 0) {
        if (best < 0) best = s;
        continue;
      }
      if (best < 0 || frequency[best] == 0 ||
          gain(counts[s], frequency[s], 1) > gain(counts[best], frequency[best], 1))
        best = s;
    }
    ++frequency[best];
    ++used;
  }
}

uint64_t coded_length(const uint32_t* counts, const uint16_t* frequency, int symbols, int resolution) {
  uint64_t length = 0;
  for (int s = 0; s < symbols; ++s) {
    if (counts[s] == 0) continue;
    length += counts[s] * static_cast<uint64_t>(resolution * kOne - logarithms()[frequency[s]]);
  }
  return length;
}

// Neighbours in an alphabet are about as frequent: the one before sets the order of the next.
void write_frequencies(const uint16_t* frequency, int symbols, int resolution, BitWriter* writer) {
  int order = resolution - 3;
  for (int s = 0; s + 1 < symbols; ++s) {
    writer->write_golomb(frequency[s], order);
    order = golomb_order(frequency[s]);
  }
}

Status read_frequencies(BitReader* reader, int symbols, int resolution, uint16_t* frequency) {
  const int64_t slots = int64_t{1} << resolution;
  int64_t left = slots;
  int order = resolution - 3;
  for (int s = 0; s < symbols; ++s) {
    const int64_t f = s + 1 < symbols ? static_cast<int64_t>(reader->read_golomb(order)) : left;
    if (f >= slots || f > left) return reader->overrun() ? Status::kTruncated : Status::kBadTable;
    frequency[s] = static_cast<uint16_t>(f);
    left -= f;
    order = golomb_order(frequency[s]);
  }
  return reader->overrun() ? Status::kTruncated : Status::kOk;
}

}  // namespace onnxcomp::codec
