#include "sparse/packed_weights.h"

namespace onnxcomp::sparse {
namespace {

// Bounds every product of two dimensions below 2^63.
constexpr int64_t kMaxFeatures = int64_t{1} << 31;

std::string describe(const char* what, int64_t found, const std::string& expected) {
  return std::string(what) + " is " + std::to_string(found) + ", expected " + expected;
}

std::string at(int64_t position) { return " at position " + std::to_string(position); }

std::string find_size_defect(const PackedWeights& weights, const PackedLengths& lengths) {
  const int64_t size = weights.block_size;
  if (size != 1 && size != 2 && size != 4) return describe("block_size", size, "1, 2 or 4");
  if (weights.in_features < 1 || weights.in_features >= kMaxFeatures)
    return describe("in_features", weights.in_features, "1 to 2^31 - 1");
  if (weights.out_features < 1 || weights.out_features >= kMaxFeatures)
    return describe("out_features", weights.out_features, "1 to 2^31 - 1");
  if (lengths.offsets != weights.block_count() + 1)
    return describe("the length of offsets", lengths.offsets,
                    std::to_string(weights.block_count() + 1) + " (blocks + 1)");
  if (lengths.values != lengths.indices * size)
    return describe("the number of values", lengths.values,
                    std::to_string(lengths.indices * size) + " (indices x block_size)");
  return {};
}

std::string find_offset_defect(const PackedWeights& weights, int64_t entries) {
  const int64_t blocks = weights.block_count();
  if (weights.offsets[0] != 0) return describe("offsets[0]", weights.offsets[0], "0");
  for (int64_t block = 0; block < blocks; ++block) {
    if (weights.offsets[block + 1] < weights.offsets[block])
      return describe("offsets", weights.offsets[block + 1],
                      "at least " + std::to_string(weights.offsets[block]) + at(block + 1));
  }
  if (weights.offsets[blocks] != entries)
    return describe("the last offset", weights.offsets[blocks],
                    std::to_string(entries) + " (the number of indices)");
  return {};
}

std::string find_index_defect(const PackedWeights& weights) {
  const int64_t largest = weights.in_features - 1;
  for (int64_t block = 0; block < weights.block_count(); ++block) {
    int64_t previous = -1;
    for (int64_t entry = weights.offsets[block]; entry < weights.offsets[block + 1]; ++entry) {
      const int64_t index = weights.indices[entry];
      if (index < 0 || index > largest)
        return describe("an index", index, "0 to " + std::to_string(largest) + at(entry));
      if (index <= previous)
        return describe("an index", index,
                        "more than the " + std::to_string(previous) + " before it" + at(entry));
      previous = index;
    }
  }
  return {};
}

}  // namespace

int64_t PackedWeights::block_count() const { return (out_features + block_size - 1) / block_size; }

int64_t PackedWeights::entry_count() const { return offsets[block_count()]; }

int64_t PackedWeights::tile_count() const {
  return (out_features + kTileColumns - 1) / kTileColumns;
}

std::string find_defect(const PackedWeights& weights, const PackedLengths& lengths) {
  std::string defect = find_size_defect(weights, lengths);
  if (defect.empty()) defect = find_offset_defect(weights, lengths.indices);
  if (defect.empty()) defect = find_index_defect(weights);
  return defect;
}

}  // namespace onnxcomp::sparse
