#pragma once

#include <vector>

#include "codec/rans.h"

namespace onnxcomp::codec::rans {

// Which codes get a symbol of their own.
struct Alphabet {
  Header header;                 // all but lanes and side_bytes
  std::vector<uint32_t> counts;  // [header.symbols]
  uint64_t length;               // bits of codes, table and escapes, with 16 fractional bits
};

// The alphabet that codes `codes` with one table in the fewest bits.
Alphabet choose_alphabet(const int32_t* codes, int64_t count);

// symbols[i] of every code, and the escaped codes and the low bits as bytes.
struct Symbols {
  std::vector<uint16_t> symbols;
  std::vector<uint8_t> side;
  std::vector<uint8_t> low;
};
Symbols split_codes(const int32_t* codes, int64_t count, const Header& header);

// How many lanes a payload of so many bytes can afford: a lane costs two bytes, net.
int affordable_lanes_log2(uint64_t payload_bytes, int64_t count, bool prefer_speed);

}  // namespace onnxcomp::codec::rans
