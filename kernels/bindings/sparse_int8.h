#pragma once

#include <nanobind/nanobind.h>

namespace onnxcomp {

// Adds products with sparse int8 weights to the module.
void bind_sparse_int8(nanobind::module_& module);

}  // namespace onnxcomp
