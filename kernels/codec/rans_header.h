#pragma once

#include "codec/bits.h"
#include "codec/rans.h"

namespace onnxcomp::codec::rans {

void write_header(const Header& header, BitWriter* writer);
Status read_header(BitReader* reader, Header* header);

// A code (its low bits taken off) outside the alphabet: a bit, 1 above and 0 below, and how far.
void write_escape(int64_t code, const Header& header, BitWriter* writer);
bool read_escape(BitReader* reader, const Header& header, int32_t* code);

}  // namespace onnxcomp::codec::rans
