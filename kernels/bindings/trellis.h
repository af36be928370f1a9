#pragma once

#include <nanobind/nanobind.h>

namespace onnxcomp {

// Adds trellis-coded integers to the module.
void bind_trellis(nanobind::module_& module);

}  // namespace onnxcomp
