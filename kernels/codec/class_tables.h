#pragma once

// How a payload writes the frequencies of its classes: each either one by one, or as a Gaussian whose
// parameters are near those of the class before.

#include <vector>

#include "codec/rans.h"
#include "codec/bits.h"

namespace onnxcomp::codec::rans {

// `length`: bits of all counts with their tables, 16 fractional bits.
struct ClassTables {
  FrequencyTable table;
  uint64_t length;
};

// counts[c * header.symbols + s]. Writes to `writer` what read_classes reads.
ClassTables write_classes(const std::vector<uint32_t>& counts, const Header& header, BitWriter* writer);

Status read_classes(BitReader* reader, const Header& header, int classes, FrequencyTable* table);

}  // namespace onnxcomp::codec::rans
