#pragma once

#include <nanobind/nanobind.h>

namespace onnxcomp {

// Adds what restores chunks of tensors from files.
void bind_restoring(nanobind::module_& module);

}  // namespace onnxcomp
