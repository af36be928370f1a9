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
// there is one, has x[indices[i]] in lanes 4 i to 4 i + 3. Adds to sums[4].
template <class V>
void add_fours(const float* values, const int32_t* indices, int64_t entries, const float* x,
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
  for (int64_t lane = 0; lane < V::kLanes; ++lane) sums[lane % 4] += lanes[lane];
  for (; entry < entries; ++entry) {
    for (int b = 0; b < 4; ++b) sums[b] += values[entry * 4 + b] * x[indices[entry]];
  }
}

template <class V>
void multiply_row_fours(const PackedWeights& weights, const float* bias, const float* x,
                        TileRange tiles, float* y) {
  for (int64_t t = tiles.first; t < tiles.last; ++t) {
    auto tile = tile_at<kTileColumns>(weights, bias, t);
    for (int64_t column = 0; column < tile.width; column += 4) {
      const int32_t* range = weights.offsets + (tile.first_column + column) / 4;
      float* sums = tile.bias + column;
      add_fours<V>(weights.values + int64_t{range[0]} * 4, weights.indices + range[0],
                   range[1] - range[0], x, sums);
      for (int64_t b = 0; b < 4 && column + b < tile.width; ++b)
        y[tile.first_column + column + b] = sums[b];
    }
  }
}

}  // namespace
}  // namespace onnxcomp::sparse
