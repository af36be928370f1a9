#pragma once

// A single token, whose inputs are few against the weights: nothing is transposed. See
// panel_loops.h for what V is and why everything is in an unnamed namespace.

#include <cstdint>

#include "sparse/kernels.h"
#include "sparse/panel_loops.h"

namespace onnxcomp::sparse {
namespace {

template <int kBlock>
void multiply_row_blocks(const PackedWeights& weights, const float* bias, const float* x,
                         TileRange tiles, float* y) {
  constexpr int kTogether = 4 / kBlock;
  for (int64_t t = tiles.first; t < tiles.last; ++t) {
    const auto tile = tile_at<kTileColumns>(weights, bias, t);
    for (int64_t column = 0; column < tile.width; column += kBlock) {
      const int64_t block = (tile.first_column + column) / kBlock;
      const int64_t last = weights.offsets[block + 1];
      int64_t entry = weights.offsets[block];
      float sums[kTogether][kBlock] = {};
      for (; entry + kTogether <= last; entry += kTogether) {
        for (int i = 0; i < kTogether; ++i) {
          const float* values = weights.values + (entry + i) * kBlock;
          const float value = x[weights.indices[entry + i]];
          for (int b = 0; b < kBlock; ++b) sums[i][b] += values[b] * value;
        }
      }
      for (; entry < last; ++entry) {
        const float* values = weights.values + entry * kBlock;
        const float value = x[weights.indices[entry]];
        for (int b = 0; b < kBlock; ++b) sums[0][b] += values[b] * value;
      }
      for (int b = 0; b < kBlock && column + b < tile.width; ++b) {
        float total = tile.bias[column + b];
        for (int i = 0; i < kTogether; ++i) total += sums[i][b];
        y[tile.first_column + column + b] = total;
      }
    }
  }
}

// Blocks of four: several entries fill a vector. V::spread(x, indices), where V::kSpreads says that
// there is one, has x[indices[i]] in lanes 4 i to 4 i + 3. Writes sums[4].
template <class V>
void sum_fours(const float* values, const int32_t* indices, int64_t entries, const float* x,
               float* sums) {
  constexpr int64_t kEntries = V::kLanes / 4;
  constexpr int kTogether = 4;
  V totals[kTogether];
  for (int i = 0; i < kTogether; ++i) totals[i] = V::broadcast(0.0f);
  int64_t entry = 0;
  for (; entry + kTogether * kEntries <= entries; entry += kTogether * kEntries) {
    for (int i = 0; i < kTogether; ++i) {
      const int64_t at = entry + i * kEntries;
      totals[i] = V::multiply_add(V::load(values + at * 4), V::spread(x, indices + at), totals[i]);
    }
  }
  for (; entry + kEntries <= entries; entry += kEntries) {
    totals[0] =
        V::multiply_add(V::load(values + entry * 4), V::spread(x, indices + entry), totals[0]);
  }
  float lanes[V::kLanes];
  V::store(V::add(V::add(totals[0], totals[1]), V::add(totals[2], totals[3])), lanes);
  for (int b = 0; b < 4; ++b) sums[b] = lanes[b];
  for (int64_t i = 1; i < kEntries; ++i) {
    for (int b = 0; b < 4; ++b) sums[b] += lanes[4 * i + b];
  }
  for (; entry < entries; ++entry) {
    const float value = x[indices[entry]];
    for (int b = 0; b < 4; ++b) sums[b] += values[entry * 4 + b] * value;
  }
}

template <class V>
void multiply_row_fours(const PackedWeights& weights, const float* bias, const float* x,
                        TileRange tiles, float* y) {
  const int64_t last = smaller(tiles.last * kTileColumns, weights.out_features);
  for (int64_t column = tiles.first * kTileColumns; column < last; column += 4) {
    const int64_t first = weights.offsets[column / 4];
    float sums[4];
    sum_fours<V>(weights.values + first * 4, weights.indices + first,
                 weights.offsets[column / 4 + 1] - first, x, sums);
    for (int64_t b = 0; b < 4 && column + b < last; ++b)
      y[column + b] = bias == nullptr ? sums[b] : sums[b] + bias[column + b];
  }
}

// Single weights. V::pick(x, indices), where V::kPicks says that there is one, has x[indices[i]] in lane
// i.
template <class V>
float sum_singles(const float* values, const int32_t* indices, int64_t entries, const float* x) {
  constexpr int64_t kLanes = V::kLanes;
  V totals[2] = {V::broadcast(0.0f), V::broadcast(0.0f)};
  int64_t entry = 0;
  for (; entry + 2 * kLanes <= entries; entry += 2 * kLanes) {
    for (int64_t i = 0; i < 2; ++i) {
      const int64_t at = entry + i * kLanes;
      totals[i] = V::multiply_add(V::load(values + at), V::pick(x, indices + at), totals[i]);
    }
  }
  if (entry + kLanes <= entries) {
    totals[0] = V::multiply_add(V::load(values + entry), V::pick(x, indices + entry), totals[0]);
    entry += kLanes;
  }
  float lanes[kLanes];
  V::store(V::add(totals[0], totals[1]), lanes);
  float sum = 0.0f;
  for (; entry < entries; ++entry) sum += values[entry] * x[indices[entry]];
  for (int64_t lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
  return sum;
}

template <class V>
void multiply_row_singles(const PackedWeights& weights, const float* bias, const float* x,
                          TileRange tiles, float* y) {
  const int64_t last = smaller(tiles.last * kTileColumns, weights.out_features);
  for (int64_t column = tiles.first * kTileColumns; column < last; ++column) {
    const int64_t entry = weights.offsets[column];
    const float sum = sum_singles<V>(weights.values + entry, weights.indices + entry,
                                     weights.offsets[column + 1] - entry, x);
    y[column] = bias == nullptr ? sum : sum + bias[column];
  }
}

}  // namespace
}  // namespace onnxcomp::sparse
