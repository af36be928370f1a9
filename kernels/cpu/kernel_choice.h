#pragma once

#include <cstring>
#include <vector>

namespace onnxcomp {

// The kernel of that name, "auto" for the first; null if there is none. For files that are compiled
// for every processor: those of one instruction set may not use templates of std.
template <class Kernel>
const Kernel* kernel_named(const std::vector<const Kernel*>& kernels, const char* isa) {
  if (std::strcmp(isa, "auto") == 0) return kernels.front();
  for (const Kernel* kernel : kernels) {
    if (std::strcmp(isa, kernel->isa) == 0) return kernel;
  }
  return nullptr;
}

}  // namespace onnxcomp
