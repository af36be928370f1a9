#pragma once

#include "zstd/block.h"

namespace onnxcomp::zstd {

// Literals and matches take turns (RFC 8878, 3.1.1.3.2 and 3.1.1.4): `section` has the lengths, and the
// literals left at its end are appended. Appends at most `largest` bytes.
Status decode_sequences(Bytes section, Bytes literals, size_t largest, Workspace* work, Output* out) noexcept;

}  // namespace onnxcomp::zstd
