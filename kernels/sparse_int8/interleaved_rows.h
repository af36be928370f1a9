#pragma once

#include "sparse_int8/kernels.h"

namespace onnxcomp::sparse_int8 {

// Kernel::interleave of what does so for one row. The row's function has no linkage, so no other
// file's instruction set can take the place of this one's.
template <void (*kRow)(const Planes& planes, int64_t first, int64_t count, uint8_t* to)>
void interleave_rows(const Planes& planes, const Patch& patch, uint8_t* to) {
  for (int64_t row = 0; row < patch.rows; ++row)
    kRow(planes, patch.first + row * patch.stride, patch.pixels,
         to + row * patch.to_stride * kQuad);
}

}  // namespace onnxcomp::sparse_int8
