#pragma once

#include <nanobind/nanobind.h>

namespace onnxcomp {

// Adds the weight codec to the module.
void bind_codec(nanobind::module_& module);

}  // namespace onnxcomp
