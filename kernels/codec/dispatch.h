#pragma once

#include <vector>

#include "codec/lanes.h"

namespace onnxcomp::codec {

// The decoders this processor runs, best first; the last one is always "portable".
const std::vector<const LaneKernel*>& available_kernels();

// The decoder of that name, "auto" for the best; null if it is unknown or this processor lacks it.
const LaneKernel* find_kernel(const char* isa);

}  // namespace onnxcomp::codec
