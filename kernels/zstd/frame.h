#pragma once

// A decoder of zstd frames (RFC 8878) without dictionaries. It needs no memory but the output, which is
// its window too, and the workspace.

#include "zstd/block.h"

namespace onnxcomp::zstd {

// Unpacks a frame that holds exactly `size` bytes and ends where `frame` does. What was written before an
// error is meaningless.
Status decode_frame(Bytes frame, uint8_t* out, size_t size, Workspace* work) noexcept;

}  // namespace onnxcomp::zstd
