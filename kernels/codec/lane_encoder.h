#pragma once

#include <cstdint>
#include <vector>

#include "codec/frequency_table.h"

namespace onnxcomp::codec::rans {

// Codes in the order a decoder meets them: `steps` times one code on each of lanes 0 .. active - 1.
struct Run {
  int64_t steps;
  int active;
};

// The states and words for symbols[i] = class * table.symbols + symbol, every one of which has a
// frequency. Ends a payload.
std::vector<uint8_t> encode_lanes(std::vector<uint16_t> symbols, const std::vector<Run>& runs,
                                  const FrequencyTable& table, int lanes);

}  // namespace onnxcomp::codec::rans
