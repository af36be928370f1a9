#pragma once

// Convolutions: the lanes are pixels of an image, or of a padded copy of it, so one weight serves
// all of them. See panel_loops.h for what V is and why everything is in an unnamed namespace.

#include <cstdint>

#include "sparse/kernels.h"

namespace onnxcomp::sparse {
namespace {

// Sums of kRows rows of a block and kVectors vectors of pixels, in registers.
template <class V, int kRows, int kVectors>
void accumulate_columns(const float* values, const float* x, V (&sums)[kRows][kVectors]) {
  V pixels[kVectors];
  for (int v = 0; v < kVectors; ++v) pixels[v] = V::load(x + v * V::kLanes);
  for (int row = 0; row < kRows; ++row) {
    const V value = V::broadcast(values[row]);
    for (int v = 0; v < kVectors; ++v)
      sums[row][v] = V::multiply_add(value, pixels[v], sums[row][v]);
  }
}

// The first kRows rows of a block of kBlock, from `values` on: y[kRows, kVectors vectors]. Eight
// running sums hide the latency of a multiply-add.
template <class V, int kBlock, int kRows, int kVectors>
void multiply_rows_of_block(const float* values, const int32_t* indices, int64_t entries,
                            const Columns& columns, const float* bias, float* y, int64_t stride) {
  constexpr int kTogether = kRows * kVectors >= 8 ? 1 : 8 / (kRows * kVectors);
  V sums[kTogether][kRows][kVectors];
  for (int i = 0; i < kTogether; ++i) {
    for (int row = 0; row < kRows; ++row) {
      for (int v = 0; v < kVectors; ++v)
        sums[i][row][v] = V::broadcast(i == 0 ? bias[row] : 0.0f);
    }
  }
  int64_t entry = 0;
  for (; entry + kTogether <= entries; entry += kTogether) {
    for (int i = 0; i < kTogether; ++i) {
      accumulate_columns<V, kRows, kVectors>(values + (entry + i) * kBlock,
                                             columns.x + columns.places[indices[entry + i]],
                                             sums[i]);
    }
  }
  for (; entry < entries; ++entry) {
    accumulate_columns<V, kRows, kVectors>(
        values + entry * kBlock, columns.x + columns.places[indices[entry]], sums[0]);
  }
  const V low = V::broadcast(columns.low);
  for (int row = 0; row < kRows; ++row) {
    for (int v = 0; v < kVectors; ++v) {
      V total = sums[0][row][v];
      for (int i = 1; i < kTogether; ++i) total = V::add(total, sums[i][row][v]);
      V::store(V::maximum(low, total), y + row * stride + v * V::kLanes);
    }
  }
}

// How the sums of a block fill the registers: kRows of its rows and kUnits x kColumnLanes pixels.
template <class V, int kBlock>
struct Shape {
  static constexpr bool kManyRegisters = V::kLanes == 16;
  static constexpr int kRows = kBlock > 4 && !kManyRegisters ? 4 : kBlock;
  static constexpr int kUnits = kManyRegisters ? (kBlock > 4 ? 1 : 4) : (kBlock > 2 ? 1 : 2);
};

template <class V, int kBlock, int kUnits>
void multiply_block_columns(const PackedWeights& weights, const float* bias, int64_t block,
                            const Columns& columns, float* y, int64_t stride) {
  constexpr int kRows = Shape<V, kBlock>::kRows;
  constexpr int kVectors = static_cast<int>(kUnits * kColumnLanes / V::kLanes);
  const int64_t first = weights.offsets[block];
  const int64_t entries = weights.offsets[block + 1] - first;
  for (int row = 0; row < kBlock; row += kRows) {
    multiply_rows_of_block<V, kBlock, kRows, kVectors>(
        weights.values + first * kBlock + row, weights.indices + first, entries, columns,
        bias + block * kBlock + row, y + row * stride, stride);
  }
}

template <class V, int kBlock>
void multiply_columns_of(const PackedWeights& weights, const float* bias, const Columns& given,
                         BlockRange blocks, float* y, int64_t stride) {
  constexpr int kUnits = Shape<V, kBlock>::kUnits;
  for (int64_t block = blocks.first; block < blocks.last; ++block, y += kBlock * stride) {
    Columns columns = given;
    float* to = y;
    for (; columns.units >= kUnits; columns.units -= kUnits) {
      multiply_block_columns<V, kBlock, kUnits>(weights, bias, block, columns, to, stride);
      columns.x += kUnits * kColumnLanes;
      to += kUnits * kColumnLanes;
    }
    if (kUnits > 2 && columns.units == 3) {
      multiply_block_columns<V, kBlock, 3>(weights, bias, block, columns, to, stride);
    } else if (kUnits > 2 && columns.units == 2) {
      multiply_block_columns<V, kBlock, 2>(weights, bias, block, columns, to, stride);
    } else if (kUnits > 1 && columns.units == 1) {
      multiply_block_columns<V, kBlock, 1>(weights, bias, block, columns, to, stride);
    }
  }
}

template <class V>
void multiply_columns(const PackedWeights& weights, const float* bias, const Columns& columns,
                      BlockRange blocks, float* y, int64_t stride) {
  switch (weights.block_size) {
    case kWideBlock:
      return multiply_columns_of<V, kWideBlock>(weights, bias, columns, blocks, y, stride);
    case 4: return multiply_columns_of<V, 4>(weights, bias, columns, blocks, y, stride);
    case 2: return multiply_columns_of<V, 2>(weights, bias, columns, blocks, y, stride);
    default: return multiply_columns_of<V, 1>(weights, bias, columns, blocks, y, stride);
  }
}

}  // namespace
}  // namespace onnxcomp::sparse
