#pragma once

// Finite state entropy (RFC 8878, 4.1): a state is an entry of a table, which has a symbol and says how
// many bits lead to the next state.

#include "zstd/backward_bits.h"
#include "zstd/status.h"

namespace onnxcomp::zstd {

inline constexpr int kLargestLog = 9;
inline constexpr int kMostSymbols = 64;

struct FseEntry {
  uint16_t base;  // of the next state
  uint8_t symbol;
  uint8_t bits;   // added to it
};

struct FseTable {
  FseEntry entries[1 << kLargestLog];
  int log;        // it has 2^log entries; negative: there is no table
};

// probabilities[symbols] in 2^-log, -1 for one that has a single entry. They sum to one.
Status build_fse(const int16_t* probabilities, int symbols, int log, FseTable* table) noexcept;

// The table of one symbol, which takes no bits.
void build_single(uint8_t symbol, FseTable* table) noexcept;

// Reads a table's description off the front of `bytes`.
Status read_fse(int largest_log, int most_symbols, Bytes* bytes, FseTable* table) noexcept;

}  // namespace onnxcomp::zstd
