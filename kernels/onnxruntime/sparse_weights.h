#pragma once

#include "onnxruntime/arguments.h"
#include "sparse/packed_weights.h"

// What the operators with sparse float32 weights have in common.

namespace onnxcomp::ort {

enum SparseInput : size_t { kX, kValues, kIndices, kOffsets, kBias };

// The weights are checked, and used where they lie, or copies of them.
sparse::PackedWeights read_sparse_weights(FunctionTable api, const KernelInfo* info,
                                          int64_t in_features, int64_t out_features,
                                          int64_t groups, std::vector<Copy>* copies);

}  // namespace onnxcomp::ort
