#pragma once

#include <cstring>
#include <initializer_list>
#include <vector>

// For files that are compiled for every processor: those of one instruction set may not use templates
// of std.

namespace onnxcomp {

template <class Kernel>
struct KernelChoice {
  const Kernel& kernel;
  bool supported;  // by this processor
};

// The supported kernels, in the order given: best first, the last one portable.
template <class Kernel>
std::vector<const Kernel*> supported_kernels(std::initializer_list<KernelChoice<Kernel>> choices) {
  std::vector<const Kernel*> kernels;
  for (const KernelChoice<Kernel>& choice : choices) {
    if (choice.supported) kernels.push_back(&choice.kernel);
  }
  return kernels;
}

// The kernel of that name, "auto" for the first; null if there is none.
template <class Kernel>
const Kernel* kernel_named(const std::vector<const Kernel*>& kernels, const char* isa) {
  if (std::strcmp(isa, "auto") == 0) return kernels.front();
  for (const Kernel* kernel : kernels) {
    if (std::strcmp(isa, kernel->isa) == 0) return kernel;
  }
  return nullptr;
}

}  // namespace onnxcomp
