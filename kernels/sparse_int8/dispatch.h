#pragma once

#include <vector>

#include "sparse_int8/kernels.h"

namespace onnxcomp::sparse_int8 {

// The kernels this processor runs, best first; the last one is always "portable".
const std::vector<const Kernel*>& available_kernels();

// The kernel of that name, "auto" for the best; null if it is unknown or this processor lacks it.
const Kernel* find_kernel(const char* isa);

}  // namespace onnxcomp::sparse_int8
