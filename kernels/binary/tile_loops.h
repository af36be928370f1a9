#pragma once

// The algorithm, written once over vectors V and included by one source file per instruction set.
// Everything is in an unnamed namespace, and nothing comes from std: of a template with external
// linkage the linker keeps one copy, and it could be the one compiled for instructions this
// processor does not have.
//
// V has Lanes (kLanes words), Sum (how many bits of each differ), Ints and Floats (kLanes numbers).

#include <cstdint>

#include "binary/kernels.h"

namespace onnxcomp::binary {
namespace {

constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// counts[row][block]: the bits in which words `range` of a row and of a block's lanes differ.
template <class V, int kRows, int kBlocks>
void count_words(const uint64_t* rows, const uint64_t* blocks, int64_t words, Range range,
                 typename V::Ints (&counts)[kRows][kBlocks]) {
  typename V::Sum sums[kRows][kBlocks];
  for (int r = 0; r < kRows; ++r) {
    for (int b = 0; b < kBlocks; ++b) sums[r][b] = V::no_difference();
  }
  for (int64_t k = range.first; k < range.last; ++k) {
    typename V::Lanes lanes[kBlocks];
    for (int b = 0; b < kBlocks; ++b) lanes[b] = V::load(blocks + (b * words + k) * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const typename V::Word word = V::broadcast(rows[r * words + k]);
      for (int b = 0; b < kBlocks; ++b) V::add_differences(sums[r][b], lanes[b], word);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int b = 0; b < kBlocks; ++b) counts[r][b] = V::counts(sums[r][b]);
  }
}

// sink(row, block, counts): the bits in which a row and the lanes of a block differ.
template <class V, int kRows, int kBlocks, class Sink>
void count_tile(const uint64_t* rows, const uint64_t* blocks, int64_t words, const Sink& sink) {
  typename V::Ints totals[kRows][kBlocks];
  count_words<V>(rows, blocks, words, {0, smaller(V::kWordsPerSum, words)}, totals);
  for (int64_t first = V::kWordsPerSum; first < words; first += V::kWordsPerSum) {
    typename V::Ints more[kRows][kBlocks];
    count_words<V>(rows, blocks, words, {first, smaller(first + V::kWordsPerSum, words)}, more);
    for (int r = 0; r < kRows; ++r) {
      for (int b = 0; b < kBlocks; ++b) totals[r][b] = V::add(totals[r][b], more[r][b]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int b = 0; b < kBlocks; ++b) sink(r, b, totals[r][b]);
  }
}

template <class V, int kRows, class Sink>
void count_rows(const uint64_t* rows, int64_t row, const uint64_t* blocks, int64_t block_count,
                int64_t words, const Sink& sink) {
  int64_t block = 0;
  for (; block + V::kBlocks <= block_count; block += V::kBlocks) {
    count_tile<V, kRows, V::kBlocks>(
        rows + row * words, blocks + block * words * kLanes, words,
        [&](int64_t r, int64_t b, const typename V::Ints& counts) { sink(row + r, block + b, counts); });
  }
  for (; block < block_count; ++block) {
    count_tile<V, kRows, 1>(
        rows + row * words, blocks + block * words * kLanes, words,
        [&](int64_t r, int64_t, const typename V::Ints& counts) { sink(row + r, block, counts); });
  }
}

// The same for up to kTileRows rows and kTileBlocks blocks.
template <class V, class Sink>
void count_differences(const uint64_t* rows, int64_t row_count, const uint64_t* blocks,
                       int64_t block_count, int64_t words, const Sink& sink) {
  if (row_count == kTileRows)
    return count_rows<V, kTileRows>(rows, 0, blocks, block_count, words, sink);
  for (int64_t row = 0; row < row_count; ++row)
    count_rows<V, 1>(rows, row, blocks, block_count, words, sink);
}

template <class V>
typename V::Ints correct(const Corrections& corrections, int64_t channel, const int32_t* classes) {
  const int32_t* values = corrections.values + channel * corrections.stride;
  if (corrections.stride == kLookupClasses) return V::look_up(values, classes);
  int32_t found[kLanes];
  for (int64_t lane = 0; lane < kLanes; ++lane) found[lane] = values[classes[lane]];
  return V::load(found);
}

// The sums of one block of pixels.
template <class V>
typename V::Ints conv_sums(const ConvRows& conv, const Panel& panel, int64_t channel, int64_t block,
                           const typename V::Ints& counts) {
  const typename V::Ints sums = V::subtract_twice(V::ints(conv.signs), counts);
  if (!panel.at_border) return sums;
  return V::add(sums, correct<V>(conv.corrections, channel, panel.classes + block * kLanes));
}

int64_t blocks_of(const Panel& panel) { return (panel.lanes + kLanes - 1) / kLanes; }

template <class Element>
void write_runs(const Panel& panel, const Element* lanes, Element* y) {
  for (int64_t r = 0; r < panel.run_count; ++r) {
    const Run& run = panel.runs[r];
    for (int64_t i = 0; i < run.count; ++i) y[run.output + i] = lanes[run.lane + i];
  }
}

template <class V>
void conv_floats(const ConvRows& conv, const Panel& panel, Range channels, const FloatOutput& out) {
  alignas(64) float lanes[kTileRows * kTileLanes];
  const int64_t blocks = blocks_of(panel);
  const bool in_place = panel.run_count == 1 && panel.lanes == blocks * kLanes;
  for (int64_t first = channels.first; first < channels.last; first += kTileRows) {
    const int64_t rows = smaller(kTileRows, channels.last - first);
    float* y = out.y + first * conv.channel_stride;
    float* to = in_place ? y + panel.runs[0].output : lanes;
    const int64_t stride = in_place ? conv.channel_stride : kTileLanes;
    const auto write = [&](int64_t row, int64_t block, const typename V::Ints& counts) {
      const int64_t channel = first + row;
      typename V::Floats sums = V::convert(conv_sums<V>(conv, panel, channel, block, counts));
      if (out.scale != nullptr) sums = V::multiply(sums, V::floats(out.scale[channel]));
      if (out.bias != nullptr) sums = V::add(sums, V::floats(out.bias[channel]));
      V::store(sums, to + row * stride + block * kLanes);
    };
    count_differences<V>(conv.bits + first * conv.row_words, rows, panel.words, blocks,
                         conv.row_words, write);
    for (int64_t row = 0; !in_place && row < rows; ++row)
      write_runs(panel, lanes + row * kTileLanes, y + row * conv.channel_stride);
  }
}

template <class V>
void conv_bits(const ConvRows& conv, const Panel& panel, Range channels, const BitOutput& out) {
  const int64_t blocks = blocks_of(panel);
  for (int64_t start = channels.first; start < channels.last; start += kWordBits) {
    alignas(64) uint64_t words[kTileLanes] = {};
    const int64_t stop = smaller(start + kWordBits, channels.last);
    for (int64_t first = start; first < stop; first += kTileRows) {
      const auto set = [&](int64_t row, int64_t block, const typename V::Ints& counts) {
        const int64_t channel = first + row;
        const typename V::Ints sums = conv_sums<V>(conv, panel, channel, block, counts);
        V::set_where_at_least(sums, V::ints(out.thresholds[channel]),
                              uint64_t{1} << (channel - start), words + block * kLanes);
      };
      count_differences<V>(conv.bits + first * conv.row_words, smaller(kTileRows, stop - first),
                           panel.words, blocks, conv.row_words, set);
    }
    write_runs(panel, words, out.y + start / kWordBits * conv.channel_stride);
  }
}

// Numbers of the outputs of one tile, with a filler past the last of them.
template <class Number>
struct TileNumbers {
  alignas(64) Number lanes[kTileLanes];

  explicit TileNumbers(Number filler) {
    for (int64_t i = 0; i < kTileLanes; ++i) lanes[i] = filler;
  }
  const Number* at(const Number* numbers, int64_t first, int64_t count) {
    if (numbers == nullptr) return lanes;
    if (count == kTileLanes) return numbers + first;
    for (int64_t i = 0; i < count; ++i) lanes[i] = numbers[first + i];
    return lanes;
  }
};

template <class V>
void gemm_floats(const GemmWeights& weights, const GemmRows& input, Range outputs,
                 const FloatOutput& out) {
  alignas(64) float lanes[kTileRows * kTileLanes];
  TileNumbers<float> scales(1.0f), biases(0.0f);
  const int64_t words = weights.row_words();
  const typename V::Ints signs = V::ints(static_cast<int32_t>(weights.signs()));
  for (int64_t first = outputs.first; first < outputs.last; first += kTileLanes) {
    const int64_t width = smaller(kTileLanes, outputs.last - first);
    const int64_t blocks = (width + kLanes - 1) / kLanes;
    const bool in_place = width == blocks * kLanes;
    const float* scale = scales.at(out.scale, first, width);
    const float* bias = biases.at(out.bias, first, width);
    for (int64_t above = 0; above < input.rows; above += kTileRows) {
      const int64_t rows = smaller(kTileRows, input.rows - above);
      float* y = out.y + above * weights.out_features + first;
      float* to = in_place ? y : lanes;
      const int64_t stride = in_place ? weights.out_features : kTileLanes;
      const auto write = [&](int64_t row, int64_t block, const typename V::Ints& counts) {
        typename V::Floats sums = V::convert(V::subtract_twice(signs, counts));
        if (out.scale != nullptr) sums = V::multiply(sums, V::load(scale + block * kLanes));
        if (out.bias != nullptr) sums = V::add(sums, V::load(bias + block * kLanes));
        V::store(sums, to + row * stride + block * kLanes);
      };
      count_differences<V>(input.x + above * words, rows, weights.bits + first * words, blocks, words,
                           write);
      for (int64_t row = 0; !in_place && row < rows; ++row) {
        for (int64_t i = 0; i < width; ++i)
          y[row * weights.out_features + i] = lanes[row * kTileLanes + i];
      }
    }
  }
}

template <class V>
void gemm_bits(const GemmWeights& weights, const GemmRows& input, Range outputs,
               const BitOutput& out) {
  TileNumbers<int32_t> numbers(INT32_MAX);  // no sum is that large
  const int64_t words = weights.row_words();
  const int64_t out_words = words_of(weights.out_features);
  const typename V::Ints signs = V::ints(static_cast<int32_t>(weights.signs()));
  for (int64_t first = outputs.first; first < outputs.last; first += kTileLanes) {
    const int64_t width = smaller(kTileLanes, outputs.last - first);
    const int64_t blocks = (width + kLanes - 1) / kLanes;
    const int32_t* thresholds = numbers.at(out.thresholds, first, width);
    for (int64_t above = 0; above < input.rows; above += kTileRows) {
      const int64_t rows = smaller(kTileRows, input.rows - above);
      uint64_t bits[kTileRows] = {};
      const auto set = [&](int64_t row, int64_t block, const typename V::Ints& counts) {
        const typename V::Ints levels = V::load(thresholds + block * kLanes);
        const uint64_t found = V::at_least(V::subtract_twice(signs, counts), levels);
        bits[row] |= found << (block * kLanes);
      };
      count_differences<V>(input.x + above * words, rows, weights.bits + first * words, blocks, words,
                           set);
      for (int64_t row = 0; row < rows; ++row) {
        uint64_t& word = out.y[(above + row) * out_words + first / kWordBits];
        word = first % kWordBits == 0 ? bits[row] : word | bits[row] << kTileLanes;
      }
    }
  }
}

}  // namespace
}  // namespace onnxcomp::binary
