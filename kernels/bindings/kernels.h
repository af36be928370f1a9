#pragma once

#include <string>
#include <vector>

#include "bindings/arrays.h"

// What the doors of every family of kernels have in common.

namespace onnxcomp {

// Raises ValueError where nothing of that name was found.
template <class Kernel>
const Kernel& existing(const Kernel* found, const std::string& isa) {
  if (found == nullptr) refuse("this processor has no kernel named " + isa);
  return *found;
}

template <class Kernel>
std::vector<std::string> isas_of(const std::vector<const Kernel*>& kernels) {
  std::vector<std::string> names;
  for (const Kernel* kernel : kernels) names.emplace_back(kernel->isa);
  return names;
}

}  // namespace onnxcomp
