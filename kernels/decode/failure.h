#pragma once

#include "decode/memory.h"
#include "decode/onnxcomp_decode.h"

namespace onnxcomp::decode {

// Fills `error`, which may be null, and gives the status back. `format` is printf's.
#if defined(__GNUC__)
__attribute__((format(printf, 3, 4)))
#endif
onnxcomp_status fail(onnxcomp_error* error, onnxcomp_status status, const char* format, ...) noexcept;

// After an allocation that did not succeed: `what` was to be held.
onnxcomp_status fail_memory(onnxcomp_error* error, const Budget& budget, const char* what) noexcept;

}  // namespace onnxcomp::decode
