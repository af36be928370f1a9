#pragma once

#include <nanobind/nanobind.h>

namespace onnxcomp {

// Adds decoding of bit fields to the module.
void bind_planes(nanobind::module_& module);

}  // namespace onnxcomp
