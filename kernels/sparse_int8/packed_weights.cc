#include "sparse_int8/packed_weights.h"

namespace onnxcomp::sparse_int8 {
namespace {

// Bounds every product of two dimensions below 2^63.
constexpr int64_t kMaxSize = (int64_t{1} << 31) - 1;

std::string find_range_defect(const char* what, int64_t found) {
  if (found >= 1 && found <= kMaxSize) return {};
  return describe_defect(what, found, "1 to " + std::to_string(kMaxSize));
}

std::string find_size_defect(const PackedWeights& weights, const PackedLengths& lengths) {
  const int64_t rows = weights.block_rows;
  if (rows != 1 && rows != 4) return describe_defect("block_rows", rows, "1 or 4");
  std::string defect = find_range_defect("out_channels", weights.out_channels);
  if (defect.empty()) defect = find_range_defect("in_channels", weights.in_channels);
  if (defect.empty()) defect = find_range_defect("positions", weights.positions);
  if (defect.empty()) defect = find_range_defect("the number of quads", weights.quad_count());
  if (!defect.empty()) return defect;
  if (weights.groups < 1 || weights.out_channels % weights.groups != 0)
    return describe_defect("groups", weights.groups,
                    "a divisor of the " + std::to_string(weights.out_channels) + " out_channels");
  if (lengths.offsets != weights.block_count() + 1)
    return describe_defect("the length of offsets", lengths.offsets,
                    std::to_string(weights.block_count() + 1) + " (blocks + 1)");
  if (lengths.indices > kMaxSize || lengths.values != lengths.indices * rows * kQuad)
    return describe_defect("the number of values", lengths.values,
                    std::to_string(lengths.indices) + " (indices) x " + std::to_string(rows) +
                        " (block_rows) x " + std::to_string(kQuad));
  return {};
}

}  // namespace

int64_t PackedWeights::quads_per_position() const { return (in_channels + kQuad - 1) / kQuad; }

int64_t PackedWeights::quad_count() const { return positions * quads_per_position(); }

int64_t PackedWeights::group_outputs() const { return out_channels / groups; }

int64_t PackedWeights::group_blocks() const {
  return (group_outputs() + block_rows - 1) / block_rows;
}

int64_t PackedWeights::block_count() const { return groups * group_blocks(); }

int64_t PackedWeights::entry_count() const { return offsets[block_count()]; }

std::string find_defect(const PackedWeights& weights, const PackedLengths& lengths) {
  std::string defect = find_size_defect(weights, lengths);
  if (!defect.empty()) return defect;
  const EntryLists lists = {weights.offsets, weights.block_count(), weights.indices};
  return find_entry_defect(lists, lengths.indices, weights.quad_count() - 1);
}

}  // namespace onnxcomp::sparse_int8
