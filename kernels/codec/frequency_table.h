#pragma once

// A static model: how many of the 2^resolution slots each symbol of each class owns.

#include <cstdint>
#include <vector>

#include "codec/bits.h"
#include "codec/status.h"

namespace onnxcomp::codec {

inline constexpr int kSmallestResolution = 8;
inline constexpr int kLargestResolution = 12;
inline constexpr int kMaxSymbols = 256;

struct FrequencyTable {
  int resolution = kLargestResolution;
  int symbols = 0;                  // of a class; the last one escapes when the alphabet has one
  std::vector<uint16_t> frequency;  // [classes * symbols]; each class sums to 2^resolution

  int classes() const noexcept { return static_cast<int>(frequency.size()) / symbols; }
  const uint16_t* of_class(int c) const noexcept { return frequency.data() + c * symbols; }
};

// One entry per slot of every class: symbol << 24 | frequency << 12 | slot - first slot of the
// symbol, so that one load gives all a decoder wants. Frequencies are below 2^resolution.
std::vector<uint32_t> slot_entries(const FrequencyTable& table);

// Frequencies of one class that code `counts` in the fewest bits, or nearly: every counted symbol
// gets a slot, none gets all. `frequency` has room for `symbols` >= 2.
void fit_frequencies(const uint32_t* counts, int symbols, int resolution, uint16_t* frequency);

// Bits, with 16 fractional bits, that `counts` take when coded with `frequency`.
uint64_t coded_length(const uint32_t* counts, const uint16_t* frequency, int symbols, int resolution);

// The frequencies of one class in a header.
void write_frequencies(const uint16_t* frequency, int symbols, int resolution, BitWriter* writer);
Status read_frequencies(BitReader* reader, int symbols, int resolution, uint16_t* frequency);

}  // namespace onnxcomp::codec
