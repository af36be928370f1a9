#pragma once

#include <nanobind/nanobind.h>

namespace onnxcomp {

// Adds the decoder of zstd frames, for its tests.
void bind_zstd(nanobind::module_& module);

}  // namespace onnxcomp
