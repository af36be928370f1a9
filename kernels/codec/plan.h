#pragma once

// What an encoder knows before it writes a payload: enough to tell its length.

#include <vector>

#include "codec/alphabet.h"
#include "codec/lane_encoder.h"

namespace onnxcomp::codec::rans {

struct Plan {
  Profile profile = Profile::kTable;
  Header header;
  BitWriter tables;               // what follows the header
  FrequencyTable table;
  std::vector<uint16_t> symbols;  // class * header.symbols + symbol, in coding order
  std::vector<Run> runs;
  uint64_t length = ~uint64_t{0};  // bits of symbols and tables, with 16 fractional bits
};

// A code's symbol, or the escape's, in C order, with the alphabet all profiles share.
struct Source {
  const Alphabet& alphabet;
  const Symbols& split;
  Geometry geometry;
  const LaneKernel& kernel;
  bool prefer_speed;
};

Plan plan_rows(const Source& source);

}  // namespace onnxcomp::codec::rans
