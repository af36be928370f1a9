#pragma once

// Blocks of 16 outputs, whose weights fill vectors: the lanes are outputs, so that nothing has to
// be transposed on the way out, and a single token makes as good use of them as many. See
// panel_loops.h for what V is and why everything is in an unnamed namespace.

#include <cstdint>

#include "sparse/kernels.h"
#include "sparse/panel_loops.h"
#include "sparse/row_loops.h"

namespace onnxcomp::sparse {
namespace {

// Where to find token t of input k: x[t * token_stride + k * input_stride].
struct Tokens {
  const float* x;
  int64_t token_stride;
  int64_t input_stride;
};

template <class V>
constexpr int kWideVectors = static_cast<int>(kWideBlock / V::kLanes);

// Eight running sums hide the latency of a multiply-add, and leave registers for the weights.
template <class V>
constexpr int kWideTokens = kWideVectors<V> == 1 ? 16 : 4;

template <class V, int kTokens>
void accumulate_wide(const float* values, const float* x, int64_t token_stride,
                     V (&sums)[kTokens][kWideVectors<V>]) {
  V weights[kWideVectors<V>];
  for (int v = 0; v < kWideVectors<V>; ++v) weights[v] = V::load(values + v * V::kLanes);
  for (int t = 0; t < kTokens; ++t) {
    const V token = V::broadcast(x[t * token_stride]);
    for (int v = 0; v < kWideVectors<V>; ++v)
      sums[t][v] = V::multiply_add(weights[v], token, sums[t][v]);
  }
}

// One block for kTokens tokens: y[kTokens, kWideBlock], rows y_stride apart.
template <class V, int kTokens>
void multiply_wide_block(const float* values, const int32_t* indices, int64_t entries,
                         const Tokens& tokens, const float* bias, float* y, int64_t y_stride) {
  constexpr int kVectors = kWideVectors<V>;
  constexpr int kTogether = kTokens * kVectors >= 8 ? 1 : 8 / (kTokens * kVectors);
  V sums[kTogether][kTokens][kVectors];
  for (int i = 0; i < kTogether; ++i) {
    for (int t = 0; t < kTokens; ++t) {
      for (int v = 0; v < kVectors; ++v)
        sums[i][t][v] = i == 0 ? V::load(bias + v * V::kLanes) : V::broadcast(0.0f);
    }
  }
  int64_t entry = 0;
  for (; entry + kTogether <= entries; entry += kTogether) {
    for (int i = 0; i < kTogether; ++i) {
      accumulate_wide<V, kTokens>(values + (entry + i) * kWideBlock,
                                  tokens.x + indices[entry + i] * tokens.input_stride,
                                  tokens.token_stride, sums[i]);
    }
  }
  for (; entry < entries; ++entry) {
    accumulate_wide<V, kTokens>(values + entry * kWideBlock,
                                tokens.x + indices[entry] * tokens.input_stride,
                                tokens.token_stride, sums[0]);
  }
  for (int t = 0; t < kTokens; ++t) {
    for (int v = 0; v < kVectors; ++v) {
      V total = sums[0][t][v];
      for (int i = 1; i < kTogether; ++i) total = V::add(total, sums[i][t][v]);
      V::store(total, y + t * y_stride + v * V::kLanes);
    }
  }
}

template <class V, int kTokens>
void multiply_wide_tile(const PackedWeights& weights, const Tile<kWideBlock>& tile,
                        const Tokens& tokens, int64_t count, float* y) {
  const int64_t first = weights.offsets[tile.first_column / kWideBlock];
  const int64_t last = weights.offsets[tile.first_column / kWideBlock + 1];
  const float* values = weights.values + first * kWideBlock;
  const int32_t* indices = weights.indices + first;
  if (count == kTokens && tile.width == kWideBlock)
    return multiply_wide_block<V, kTokens>(values, indices, last - first, tokens, tile.bias, y,
                                           weights.out_features);
  float results[kTokens * kWideBlock];
  multiply_wide_block<V, kTokens>(values, indices, last - first, tokens, tile.bias, results,
                                  kWideBlock);
  for (int64_t t = 0; t < count; ++t) {
    for (int64_t column = 0; column < tile.width; ++column)
      y[t * weights.out_features + column] = results[t * kWideBlock + column];
  }
}

template <class V>
void multiply_wide_panel(const PackedWeights& weights, const float* bias, const float* panel,
                         int64_t tokens, TileRange tiles, float* y) {
  for (int64_t t = tiles.first; t < tiles.last; ++t) {
    const auto tile = tile_at<kWideBlock>(weights, bias, t);
    float* to = y + tile.first_column;
    for (int64_t token = 0; token < tokens; token += kWideTokens<V>) {
      const Tokens from{panel + token, 1, kPanelTokens};
      const int64_t left = tokens - token;
      float* first = to + token * weights.out_features;
      if (kWideTokens<V> > 4 && left > 8) {
        multiply_wide_tile<V, kWideTokens<V>>(weights, tile, from, left, first);
      } else if (kWideTokens<V> > 4 && left > 4) {
        multiply_wide_tile<V, 8>(weights, tile, from, left, first);
      } else {
        multiply_wide_tile<V, 4>(weights, tile, from, left < 4 ? left : 4, first);
      }
    }
  }
}

template <class V>
void multiply_wide_row(const PackedWeights& weights, const float* bias, const float* x,
                       TileRange tiles, float* y) {
  for (int64_t t = tiles.first; t < tiles.last; ++t) {
    const auto tile = tile_at<kWideBlock>(weights, bias, t);
    multiply_wide_tile<V, 1>(weights, tile, {x, 0, 1}, 1, y + tile.first_column);
  }
}

template <class V>
void multiply_panel(const PackedWeights& weights, const float* bias, const float* panel,
                    int64_t tokens, TileRange tiles, float* y) {
  switch (weights.block_size) {
    case kWideBlock: return multiply_wide_panel<V>(weights, bias, panel, tokens, tiles, y);
    case 4: return multiply_panel_blocks<V, 4>(weights, bias, panel, tokens, tiles, y);
    case 2: return multiply_panel_blocks<V, 2>(weights, bias, panel, tokens, tiles, y);
    default: return multiply_panel_blocks<V, 1>(weights, bias, panel, tokens, tiles, y);
  }
}

template <class V>
void multiply_row(const PackedWeights& weights, const float* bias, const float* x,
                  TileRange tiles, float* y) {
  switch (weights.block_size) {
    case kWideBlock: return multiply_wide_row<V>(weights, bias, x, tiles, y);
    case 4:
      if constexpr (V::kSpreads) return multiply_row_fours<V>(weights, bias, x, tiles, y);
      return multiply_row_blocks<4>(weights, bias, x, tiles, y);
    case 2: return multiply_row_blocks<2>(weights, bias, x, tiles, y);
    default:
      if constexpr (V::kPicks) return multiply_row_singles<V>(weights, bias, x, tiles, y);
      return multiply_row_blocks<1>(weights, bias, x, tiles, y);
  }
}

}  // namespace
}  // namespace onnxcomp::sparse
