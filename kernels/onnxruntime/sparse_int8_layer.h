#pragma once

#include <cstdint>
#include <vector>

#include "onnxruntime/sparse_lists.h"
#include "sparse_int8/layer.h"

// What the operators with sparse int8 weights have in common.

namespace onnxcomp::ort {

enum SparseInt8Input : size_t { kScale = kOffsets + 1, kBias };

// The weights are checked, and used where they lie, or copies of them. Reads y_zero_point where the output is codes.
sparse_int8::Layer read_sparse_int8_layer(FunctionTable api, const KernelInfo* info,
                                          int64_t positions, int64_t groups, bool to_codes,
                                          std::vector<Copy>* copies);

}  // namespace onnxcomp::ort
