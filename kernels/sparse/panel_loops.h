#pragma once

// The algorithm, written once over a vector type V of 4, 8 or 16 float lanes and included by one
// source file per instruction set. V::transpose turns a square of 8 x 8. Everything is in an unnamed
// namespace, and nothing comes from std: of a template with external linkage the linker keeps one
// copy, and it could be the one compiled for instructions this processor does not have.

#include <cstdint>

#include "sparse/kernels.h"

namespace onnxcomp::sparse {
namespace {

constexpr int64_t kSquare = 8;
static_assert(kPanelTokens % kSquare == 0 && kTileColumns == kSquare, "tiles are squares");

inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// panel[in_features, kWidth]
template <class V, int64_t kWidth>
void fill_panel(const float* x, int64_t tokens, int64_t in_features, float* panel) {
  int64_t k = 0;
  if (tokens == kWidth) {
    for (; k + kSquare <= in_features; k += kSquare) {
      for (int64_t token = 0; token < kWidth; token += kSquare)
        V::transpose(x + token * in_features + k, in_features, panel + k * kWidth + token, kWidth);
    }
  }
  for (; k < in_features; ++k) {
    for (int64_t token = 0; token < kWidth; ++token)
      panel[k * kWidth + token] = token < tokens ? x[token * in_features + k] : 0.0f;
  }
}

template <class V>
constexpr int kPanelVectors = static_cast<int>(kPanelTokens / V::kLanes);

template <class V, int kBlock>
void accumulate(const float* values, const float* x, V (&sums)[kBlock][kPanelVectors<V>]) {
  V tokens[kPanelVectors<V>];
  for (int v = 0; v < kPanelVectors<V>; ++v) tokens[v] = V::load(x + v * V::kLanes);
  for (int b = 0; b < kBlock; ++b) {
    const V value = V::broadcast(values[b]);
    for (int v = 0; v < kPanelVectors<V>; ++v)
      sums[b][v] = V::multiply_add(value, tokens[v], sums[b][v]);
  }
}

// One block of columns for a whole panel: columns[kBlock, kPanelTokens]. Eight running sums hide the
// latency of a multiply-add: several entries are under way at once where blocks are small.
template <class V, int kBlock>
void multiply_block(const float* values, const int32_t* indices, int64_t entries,
                    const float* panel, const float* bias, float* columns) {
  constexpr int kVectors = kPanelVectors<V>;
  constexpr int kTogether = kBlock * kVectors >= 8 ? 1 : 8 / (kBlock * kVectors);
  V sums[kTogether][kBlock][kVectors];
  for (int i = 0; i < kTogether; ++i) {
    for (int b = 0; b < kBlock; ++b) {
      for (int v = 0; v < kVectors; ++v) sums[i][b][v] = V::broadcast(i == 0 ? bias[b] : 0.0f);
    }
  }
  int64_t entry = 0;
  for (; entry + kTogether <= entries; entry += kTogether) {
    for (int i = 0; i < kTogether; ++i) {
      const int64_t index = indices[entry + i];
      accumulate<V, kBlock>(values + (entry + i) * kBlock, panel + index * kPanelTokens, sums[i]);
    }
  }
  for (; entry < entries; ++entry) {
    const int64_t index = indices[entry];
    accumulate<V, kBlock>(values + entry * kBlock, panel + index * kPanelTokens, sums[0]);
  }
  for (int b = 0; b < kBlock; ++b) {
    for (int v = 0; v < kVectors; ++v) {
      V total = sums[0][b][v];
      for (int i = 1; i < kTogether; ++i) total = V::add(total, sums[i][b][v]);
      V::store(total, columns + b * kPanelTokens + v * V::kLanes);
    }
  }
}

// columns[kTileColumns, kWidth] -> y[tokens, width] of a row length out_features.
template <class V, int64_t kWidth>
void write_tile(const float* columns, int64_t tokens, int64_t width, float* y,
                int64_t out_features) {
  const int64_t whole = width == kTileColumns ? tokens - tokens % kSquare : 0;
  for (int64_t token = 0; token < whole; token += kSquare)
    V::transpose(columns + token, kWidth, y + token * out_features, out_features);
  for (int64_t token = whole; token < tokens; ++token) {
    for (int64_t column = 0; column < width; ++column)
      y[token * out_features + column] = columns[column * kWidth + token];
  }
}

template <int64_t kColumns>
struct Tile {
  int64_t first_column;
  int64_t width;  // kColumns, or fewer at the right edge
  float bias[kColumns];
};

template <int64_t kColumns>
Tile<kColumns> tile_at(const PackedWeights& weights, const float* bias, int64_t index) {
  Tile<kColumns> tile;
  tile.first_column = index * kColumns;
  const int64_t left = weights.out_features - tile.first_column;
  tile.width = left < kColumns ? left : kColumns;
  for (int64_t column = 0; column < kColumns; ++column) {
    const bool given = bias != nullptr && column < tile.width;
    tile.bias[column] = given ? bias[tile.first_column + column] : 0.0f;
  }
  return tile;
}

template <class V, int kBlock>
void multiply_panel_blocks(const PackedWeights& weights, const float* bias, const float* panel,
                           int64_t tokens, TileRange tiles, float* y) {
  alignas(64) float columns[kTileColumns * kPanelTokens];
  for (int64_t t = tiles.first; t < tiles.last; ++t) {
    const auto tile = tile_at<kTileColumns>(weights, bias, t);
    for (int64_t column = 0; column < tile.width; column += kBlock) {
      const int32_t* range = weights.offsets + (tile.first_column + column) / kBlock;
      multiply_block<V, kBlock>(weights.values + int64_t{range[0]} * kBlock,
                                weights.indices + range[0], range[1] - range[0], panel,
                                tile.bias + column, columns + column * kPanelTokens);
    }
    write_tile<V, kPanelTokens>(columns, tokens, tile.width, y + tile.first_column, weights.out_features);
  }
}

}  // namespace
}  // namespace onnxcomp::sparse
