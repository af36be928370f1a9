#pragma once

#include <nanobind/nanobind.h>

namespace onnxcomp {

// Adds products with sparse float32 weights to the module.
void bind_sparse(nanobind::module_& module);

}  // namespace onnxcomp
