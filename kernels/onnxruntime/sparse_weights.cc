#include "onnxruntime/sparse_weights.h"

#include <string>

namespace onnxcomp::ort {

sparse::PackedWeights read_sparse_weights(FunctionTable api, const KernelInfo* info,
                                          int64_t in_features, int64_t out_features,
                                          int64_t groups, std::vector<Copy>* copies) {
  check_format_version(api, info, sparse::kFormatVersion);
  const TensorView values = constant_input(api, info, kValues, "values", ElementType::kFloat, 2);
  const TensorView indices = constant_input(api, info, kIndices, "indices", ElementType::kInt32, 1);
  const TensorView offsets = constant_input(api, info, kOffsets, "offsets", ElementType::kInt32, 1);
  *copies = {values.copy, indices.copy, offsets.copy};
  sparse::PackedWeights weights;
  weights.values = static_cast<const float*>(values.data);
  weights.indices = static_cast<const int32_t*>(indices.data);
  weights.offsets = static_cast<const int32_t*>(offsets.data);
  weights.in_features = in_features;
  weights.out_features = out_features;
  weights.block_size = int_attribute(api, info, "block_size");
  weights.groups = groups;
  const std::string defect = sparse::find_defect(
      weights, {values.shape[0] * values.shape[1], indices.shape[0], offsets.shape[0]});
  if (!defect.empty()) throw InvalidArgument(defect);
  return weights;
}

}  // namespace onnxcomp::ort
