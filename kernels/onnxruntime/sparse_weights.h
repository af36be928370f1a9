#pragma once

#include "onnxruntime/sparse_lists.h"
#include "sparse/packed_weights.h"

// What the operators with sparse float32 weights have in common.

namespace onnxcomp::ort {

enum SparseFloatInput : size_t { kBias = kOffsets + 1 };

// The weights are checked, and used where they lie, or copies of them.
sparse::PackedWeights read_sparse_weights(FunctionTable api, const KernelInfo* info,
                                          int64_t in_features, int64_t out_features,
                                          int64_t groups, std::vector<Copy>* copies);

}  // namespace onnxcomp::ort
