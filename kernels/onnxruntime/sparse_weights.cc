#include "onnxruntime/sparse_weights.h"

namespace onnxcomp::ort {

sparse::PackedWeights read_sparse_weights(FunctionTable api, const KernelInfo* info,
                                          int64_t in_features, int64_t out_features,
                                          int64_t groups, std::vector<Copy>* copies) {
  check_format_version(api, info, sparse::kFormatVersion);
  sparse::PackedWeights weights;
  const PackedLengths lengths = read_lists(api, info, ElementType::kFloat, 2, &weights, copies);
  weights.in_features = in_features;
  weights.out_features = out_features;
  weights.block_size = int_attribute(api, info, "block_size");
  weights.groups = groups;
  refuse(find_defect(weights, lengths));
  return weights;
}

}  // namespace onnxcomp::ort
