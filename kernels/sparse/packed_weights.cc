#include "sparse/packed_weights.h"

namespace onnxcomp::sparse {
namespace {

// Bounds every product of two dimensions below 2^63.
constexpr int64_t kMaxFeatures = int64_t{1} << 31;

std::string find_size_defect(const PackedWeights& weights, const PackedLengths& lengths) {
  const int64_t size = weights.block_size;
  if (size != 1 && size != 2 && size != 4 && size != kWideBlock)
    return describe_defect("block_size", size, "1, 2, 4 or 16");
  if (weights.in_features < 1 || weights.in_features >= kMaxFeatures)
    return describe_defect("in_features", weights.in_features, "1 to 2^31 - 1");
  if (weights.out_features < 1 || weights.out_features >= kMaxFeatures)
    return describe_defect("out_features", weights.out_features, "1 to 2^31 - 1");
  if (weights.groups < 1 || weights.out_features % weights.groups != 0)
    return describe_defect("groups", weights.groups,
                    "a divisor of the " + std::to_string(weights.out_features) + " outputs");
  if (lengths.offsets != weights.block_count() + 1)
    return describe_defect("the length of offsets", lengths.offsets,
                    std::to_string(weights.block_count() + 1) + " (blocks + 1)");
  if (lengths.values != lengths.indices * size)
    return describe_defect("the number of values", lengths.values,
                    std::to_string(lengths.indices * size) + " (indices x block_size)");
  return {};
}

}  // namespace

int64_t PackedWeights::group_outputs() const { return out_features / groups; }

int64_t PackedWeights::group_blocks() const {
  return (group_outputs() + block_size - 1) / block_size;
}

int64_t PackedWeights::block_count() const { return groups * group_blocks(); }

int64_t PackedWeights::entry_count() const { return offsets[block_count()]; }

int64_t PackedWeights::tile_columns() const {
  return block_size == kWideBlock ? kWideBlock : kTileColumns;
}

int64_t PackedWeights::tile_count() const {
  return (out_features + tile_columns() - 1) / tile_columns();
}

std::string find_defect(const PackedWeights& weights, const PackedLengths& lengths) {
  std::string defect = find_size_defect(weights, lengths);
  if (!defect.empty()) return defect;
  const EntryLists lists = {weights.offsets, weights.block_count(), weights.indices};
  return find_entry_defect(lists, lengths.indices, weights.in_features - 1);
}

}  // namespace onnxcomp::sparse
