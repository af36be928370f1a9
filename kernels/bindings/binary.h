#pragma once

#include <nanobind/nanobind.h>

namespace onnxcomp {

// The functions of kernels/binary_layers.py.
void bind_binary(nanobind::module_& module);

}  // namespace onnxcomp
