#pragma once

// Single weights times many columns, pixels of a convolution or tokens. An input that a weight has
// read leaves the first cache before another one reads it, unless inputs come in slices that fit
// into it. See panel_loops.h for what V is and why everything is in an unnamed namespace.

#include <cstdint>

#include "sparse/kernels.h"
#include "sparse/panel_loops.h"

namespace onnxcomp::sparse {
namespace {

// Outputs of which a slice reads short pieces, too far apart for processors to foresee the next one.
constexpr int64_t kAhead = 4;

// Inputs first to last (exclusive) of some columns: x[last - first, columns].
struct Slice {
  const float* x;
  int64_t first;
  int64_t last;
};

// Adds the weight times the vectors of columns.
template <class V, int kVectors>
void accumulate_broad(float weight, const float* columns, V (&sums)[kVectors]) {
  const V value = V::broadcast(weight);
  for (int v = 0; v < kVectors; ++v)
    sums[v] = V::multiply_add(value, V::load(columns + v * V::kLanes), sums[v]);
}

// The next entries of an output, about as many as a slice has where seven of ten weights are zeros.
template <class V>
void prefetch_entries(const PackedWeights& weights, int64_t entry) {
  constexpr int64_t kLines = 3, kLine = 16;
  for (int64_t line = 0; line < kLines; ++line) {
    V::prefetch(weights.values + entry + line * kLine);
    V::prefetch(weights.indices + entry + line * kLine);
  }
}

// Outputs of the range: y[outputs, stride], of which kUnits x kColumnLanes columns are written.
// `cursors` says of each, and of kAhead after them, which entry is its next one. Sums begin with the bias at the first input, else
// with what y has; what is less than `low` becomes that.
template <class V, int kUnits>
void multiply_slice(const PackedWeights& weights, const float* bias, float low, const Slice& slice,
                    BlockRange outputs, int32_t* cursors, float* y, int64_t stride) {
  constexpr int64_t kWidth = kUnits * kColumnLanes;
  constexpr int kVectors = static_cast<int>(kWidth / V::kLanes);
  const float* const values = weights.values;
  const int32_t* const indices = weights.indices;
  const float* const x = slice.x;
  const int64_t first = slice.first, last = slice.last;
  const V lowest = V::broadcast(low);
  for (int64_t output = outputs.first; output < outputs.last; ++output, y += stride) {
    V sums[kVectors];
    if (first == 0) {
      const V start = V::broadcast(bias == nullptr ? 0.0f : bias[output]);
      for (int v = 0; v < kVectors; ++v) sums[v] = start;
    } else {
      for (int v = 0; v < kVectors; ++v) sums[v] = V::load(y + v * V::kLanes);
    }
    prefetch_entries<V>(weights, cursors[output - outputs.first + kAhead]);
    const int64_t end = weights.offsets[output + 1];
    int64_t entry = cursors[output - outputs.first];
    if (entry < end && indices[end - 1] >= last) {
      for (int64_t input; (input = indices[entry]) < last; ++entry)
        accumulate_broad<V, kVectors>(values[entry], x + (input - first) * kWidth, sums);
    } else {
      for (; entry < end; ++entry)
        accumulate_broad<V, kVectors>(values[entry], x + (indices[entry] - first) * kWidth, sums);
    }
    cursors[output - outputs.first] = static_cast<int32_t>(entry);
    for (int v = 0; v < kVectors; ++v)
      V::store(V::maximum(lowest, sums[v]), y + v * V::kLanes);
  }
}

// cursors[outputs + kAhead]
inline void begin_outputs(const PackedWeights& weights, BlockRange outputs, int32_t* cursors) {
  for (int64_t output = outputs.first; output < outputs.last + kAhead; ++output)
    *cursors++ = weights.offsets[smaller(output, outputs.last)];
}

// Of a panel of kBroadColumns tokens.
template <class V>
void multiply_broad_panel(const PackedWeights& weights, const float* bias, const float* panel,
                          int64_t tokens, TileRange tiles, float* y) {
  constexpr int64_t kInputs = kSliceFloats / kBroadColumns;
  alignas(64) float sums[kSliceOutputs * kBroadColumns];
  int32_t cursors[kSliceOutputs + kAhead];
  const int64_t end = smaller(tiles.last * kTileColumns, weights.out_features);
  for (int64_t start = tiles.first * kTileColumns; start < end; start += kSliceOutputs) {
    const BlockRange outputs{start, smaller(start + kSliceOutputs, end)};
    begin_outputs(weights, outputs, cursors);
    for (int64_t first = 0; first < weights.in_features; first += kInputs) {
      const Slice slice{panel + first * kBroadColumns, first,
                        smaller(first + kInputs, weights.in_features)};
      for (int64_t column = outputs.first; column < outputs.last; column += kTileColumns) {
        const BlockRange tile{column, smaller(column + kTileColumns, outputs.last)};
        float* const to = sums + (column - start) * kBroadColumns;
        multiply_slice<V, kBroadUnits>(weights, bias, kLowest, slice, tile,
                                       cursors + (column - start), to, kBroadColumns);
        // At once: stores that miss the cache take their time while others multiply.
        if (slice.last == weights.in_features)
          write_tile<V, kBroadColumns>(to, tokens, tile.last - tile.first, y + column,
                                       weights.out_features);
      }
    }
  }
}

// A slice that is aligned, as the pixels of an image hardly are.
template <class V, int kUnits>
Slice copy_slice(const Columns& columns, int64_t first, int64_t last, float* copy) {
  constexpr int64_t kWidth = kUnits * kColumnLanes;
  float* to = copy;
  for (int64_t input = first; input < last; ++input, to += kWidth) {
    const float* from = columns.x + columns.places[input];
    for (int64_t i = 0; i < kWidth; i += V::kLanes) V::store(V::load(from + i), to + i);
  }
  return {copy, first, last};
}

template <class V, int kUnits>
void multiply_copied(const PackedWeights& weights, const float* bias, const Columns& columns,
                     BlockRange outputs, float* y, int64_t stride) {
  constexpr int64_t kInputs = kSliceFloats / (kUnits * kColumnLanes);
  alignas(64) float copy[kSliceFloats];
  int32_t cursors[kSliceOutputs + kAhead];
  begin_outputs(weights, outputs, cursors);
  for (int64_t first = 0; first < weights.in_features; first += kInputs) {
    const int64_t last = smaller(first + kInputs, weights.in_features);
    const Slice slice = copy_slice<V, kUnits>(columns, first, last, copy);
    const float low = last == weights.in_features ? columns.low : kLowest;
    multiply_slice<V, kUnits>(weights, bias, low, slice, outputs, cursors, y, stride);
  }
}

template <class V>
void multiply_copied_columns(const PackedWeights& weights, const float* bias,
                             const Columns& columns, BlockRange outputs, float* y, int64_t stride) {
  switch (columns.units) {
    case 4: return multiply_copied<V, 4>(weights, bias, columns, outputs, y, stride);
    case 3: return multiply_copied<V, 3>(weights, bias, columns, outputs, y, stride);
    case 2: return multiply_copied<V, 2>(weights, bias, columns, outputs, y, stride);
    default: return multiply_copied<V, 1>(weights, bias, columns, outputs, y, stride);
  }
}

}  // namespace
}  // namespace onnxcomp::sparse
