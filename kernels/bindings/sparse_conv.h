#pragma once

#include <nanobind/nanobind.h>

namespace onnxcomp {

// Adds convolutions with sparse float32 weights to the module.
void bind_sparse_conv(nanobind::module_& module);

}  // namespace onnxcomp
