#pragma once

#include <cstdint>
#include <vector>

#include "entries/entry_lists.h"
#include "onnxruntime/arguments.h"

// The first inputs of every operator that skips zeros.

namespace onnxcomp::ort {

enum SparseInput : size_t { kX, kValues, kIndices, kOffsets };

// Points `weights` to the three arrays where they lie, or to copies of them; their lengths.
template <class Weights>
PackedLengths read_lists(FunctionTable api, const KernelInfo* info, ElementType type, size_t rank,
                         Weights* weights, std::vector<Copy>* copies) {
  const TensorView values = constant_input(api, info, kValues, "values", type, rank);
  const TensorView indices = constant_input(api, info, kIndices, "indices", ElementType::kInt32, 1);
  const TensorView offsets = constant_input(api, info, kOffsets, "offsets", ElementType::kInt32, 1);
  *copies = {values.copy, indices.copy, offsets.copy};
  weights->values = static_cast<decltype(weights->values)>(values.data);
  weights->indices = static_cast<const int32_t*>(indices.data);
  weights->offsets = static_cast<const int32_t*>(offsets.data);
  int64_t numbers = 1;
  for (const int64_t size : values.shape) numbers *= size;
  return {numbers, indices.shape[0], offsets.shape[0]};
}

}  // namespace onnxcomp::ort
