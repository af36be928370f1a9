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

template <class V, int kRows, int kBlocks>
void count_tile(const uint64_t* rows, const uint64_t* blocks, int64_t words, int32_t* counts) {
  typename V::Ints totals[kRows][kBlocks];
  for (int r = 0; r < kRows; ++r) {
    for (int b = 0; b < kBlocks; ++b) totals[r][b] = V::ints(0);
  }
  for (int64_t first = 0; first < words; first += V::kWordsPerSum) {
    const int64_t last = smaller(first + V::kWordsPerSum, words);
    typename V::Sum sums[kRows][kBlocks];
    for (int r = 0; r < kRows; ++r) {
      for (int b = 0; b < kBlocks; ++b) sums[r][b] = V::no_difference();
    }
    for (int64_t k = first; k < last; ++k) {
      typename V::Lanes lanes[kBlocks];
      for (int b = 0; b < kBlocks; ++b) lanes[b] = V::load(blocks + (b * words + k) * kLanes);
      for (int r = 0; r < kRows; ++r) {
        const typename V::Word word = V::broadcast(rows[r * words + k]);
        for (int b = 0; b < kBlocks; ++b) V::add_differences(sums[r][b], lanes[b], word);
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int b = 0; b < kBlocks; ++b) totals[r][b] = V::add(totals[r][b], V::counts(sums[r][b]));
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int b = 0; b < kBlocks; ++b) V::store(totals[r][b], counts + r * kTileLanes + b * kLanes);
  }
}

template <class V, int kRows>
void count_rows(const uint64_t* rows, const uint64_t* blocks, int64_t block_count, int64_t words,
                int32_t* counts) {
  int64_t block = 0;
  for (; block + V::kBlocks <= block_count; block += V::kBlocks)
    count_tile<V, kRows, V::kBlocks>(rows, blocks + block * words * kLanes, words, counts + block * kLanes);
  for (; block < block_count; ++block)
    count_tile<V, kRows, 1>(rows, blocks + block * words * kLanes, words, counts + block * kLanes);
}

// counts[row_count, kTileLanes]: the bits in which row r and lane l differ.
template <class V>
void count_differences(const uint64_t* rows, int64_t row_count, const uint64_t* blocks,
                       int64_t block_count, int64_t words, int32_t* counts) {
  if (row_count == kTileRows) return count_rows<V, kTileRows>(rows, blocks, block_count, words, counts);
  for (int64_t row = 0; row < row_count; ++row)
    count_rows<V, 1>(rows + row * words, blocks, block_count, words, counts + row * kTileLanes);
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
                           const int32_t* counts) {
  const typename V::Ints sums =
      V::subtract_twice(V::ints(conv.signs), V::load(counts + block * kLanes));
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
  alignas(64) int32_t counts[kTileRows * kTileLanes];
  alignas(64) float lanes[kTileLanes];
  const int64_t blocks = blocks_of(panel);
  const bool in_place = panel.run_count == 1 && panel.lanes == blocks * kLanes;
  for (int64_t first = channels.first; first < channels.last; first += kTileRows) {
    const int64_t rows = smaller(kTileRows, channels.last - first);
    count_differences<V>(conv.bits + first * conv.row_words, rows, panel.words, blocks,
                         conv.row_words, counts);
    for (int64_t row = 0; row < rows; ++row) {
      const int64_t channel = first + row;
      float* y = out.y + channel * conv.channel_stride;
      float* to = in_place ? y + panel.runs[0].output : lanes;
      const typename V::Floats scale = V::floats(out.scale == nullptr ? 1.0f : out.scale[channel]);
      const typename V::Floats bias = V::floats(out.bias == nullptr ? -0.0f : out.bias[channel]);
      for (int64_t block = 0; block < blocks; ++block) {
        const typename V::Ints sums =
            conv_sums<V>(conv, panel, channel, block, counts + row * kTileLanes);
        V::store(V::add(V::multiply(V::convert(sums), scale), bias), to + block * kLanes);
      }
      if (!in_place) write_runs(panel, lanes, y);
    }
  }
}

template <class V>
void conv_bits(const ConvRows& conv, const Panel& panel, Range channels, const BitOutput& out) {
  alignas(64) int32_t counts[kTileRows * kTileLanes];
  const int64_t blocks = blocks_of(panel);
  for (int64_t start = channels.first; start < channels.last; start += kWordBits) {
    alignas(64) uint64_t words[kTileLanes] = {};
    const int64_t stop = smaller(start + kWordBits, channels.last);
    for (int64_t first = start; first < stop; first += kTileRows) {
      const int64_t rows = smaller(kTileRows, stop - first);
      count_differences<V>(conv.bits + first * conv.row_words, rows, panel.words, blocks,
                           conv.row_words, counts);
      for (int64_t row = 0; row < rows; ++row) {
        const int64_t channel = first + row;
        const uint64_t bit = uint64_t{1} << (channel - start);
        for (int64_t block = 0; block < blocks; ++block) {
          const typename V::Ints sums =
              conv_sums<V>(conv, panel, channel, block, counts + row * kTileLanes);
          V::set_where_at_least(sums, V::ints(out.thresholds[channel]), bit, words + block * kLanes);
        }
      }
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
  alignas(64) int32_t counts[kTileRows * kTileLanes];
  alignas(64) float lanes[kTileLanes];
  TileNumbers<float> scales(1.0f), biases(-0.0f);
  const int64_t words = weights.row_words();
  const typename V::Ints signs = V::ints(static_cast<int32_t>(weights.signs()));
  for (int64_t first = outputs.first; first < outputs.last; first += kTileLanes) {
    const int64_t width = smaller(kTileLanes, outputs.last - first);
    const int64_t blocks = (width + kLanes - 1) / kLanes;
    const float* scale = scales.at(out.scale, first, width);
    const float* bias = biases.at(out.bias, first, width);
    for (int64_t above = 0; above < input.rows; above += kTileRows) {
      const int64_t rows = smaller(kTileRows, input.rows - above);
      count_differences<V>(input.x + above * words, rows, weights.bits + first * words, blocks, words,
                           counts);
      for (int64_t row = 0; row < rows; ++row) {
        float* y = out.y + (above + row) * weights.out_features + first;
        float* to = width == blocks * kLanes ? y : lanes;
        for (int64_t lane = 0; lane < width; lane += kLanes) {
          const typename V::Ints sums =
              V::subtract_twice(signs, V::load(counts + row * kTileLanes + lane));
          V::store(V::add(V::multiply(V::convert(sums), V::load(scale + lane)), V::load(bias + lane)),
                   to + lane);
        }
        for (int64_t i = 0; to == lanes && i < width; ++i) y[i] = lanes[i];
      }
    }
  }
}

template <class V>
void gemm_bits(const GemmWeights& weights, const GemmRows& input, Range outputs,
               const BitOutput& out) {
  alignas(64) int32_t counts[kTileRows * kTileLanes];
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
      count_differences<V>(input.x + above * words, rows, weights.bits + first * words, blocks, words,
                           counts);
      for (int64_t row = 0; row < rows; ++row) {
        uint64_t bits = 0;
        for (int64_t lane = 0; lane < width; lane += kLanes) {
          const typename V::Ints sums =
              V::subtract_twice(signs, V::load(counts + row * kTileLanes + lane));
          bits |= uint64_t{V::at_least(sums, V::load(thresholds + lane))} << lane;
        }
        uint64_t& word = out.y[(above + row) * out_words + first / kWordBits];
        word = first % kWordBits == 0 ? bits : word | bits << kTileLanes;
      }
    }
  }
}

}  // namespace
}  // namespace onnxcomp::binary
