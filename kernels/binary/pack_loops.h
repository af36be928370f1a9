#pragma once

// Packing of signs, over vectors P of P::kFloats floats; see tile_loops.h for why nothing is of std.

#include <cstdint>

#include "binary/kernels.h"

namespace onnxcomp::binary {
namespace {

template <Comparison kComparison>
constexpr bool compares(float x, float threshold) {
  switch (kComparison) {
    case Comparison::kGreater: return x > threshold;
    case Comparison::kGreaterOrEqual: return x >= threshold;
    case Comparison::kLess: return x < threshold;
    default: return x <= threshold;
  }
}

// Lanes are channels.
template <class P, Comparison kComparison>
uint64_t pack_row(const float* x, const float* thresholds, bool per_channel, int64_t channels) {
  uint64_t bits = 0;
  int64_t channel = 0;
  if (channels == kWordBits && !per_channel) {  // known lengths unroll
    const typename P::Floats level = P::broadcast(*thresholds);
    for (int64_t at = 0; at < kWordBits; at += P::kFloats)
      bits |= uint64_t{P::template mask<kComparison>(P::load(x + at), level)} << at;
    return bits;
  }
  for (; channel + P::kFloats <= channels; channel += P::kFloats) {
    const typename P::Floats levels = per_channel ? P::load(thresholds + channel) : P::broadcast(*thresholds);
    bits |= uint64_t{P::template mask<kComparison>(P::load(x + channel), levels)} << channel;
  }
  for (; channel < channels; ++channel) {
    const bool bit = compares<kComparison>(x[channel], thresholds[per_channel ? channel : 0]);
    bits |= uint64_t{bit} << channel;
  }
  return bits;
}

// Lanes are positions, kFloats of them: the words of up to 64 channels.
template <class P, Comparison kComparison>
void pack_columns(const float* x, int64_t stride, const float* thresholds, bool per_channel,
                  int64_t channels, uint64_t* bits) {
  typename P::Bits halves[2] = {P::none(), P::none()};
  for (int64_t half = 0; half < 2; ++half) {
    const int64_t first = half * 32;
    const int64_t last = channels < first + 32 ? channels : first + 32;
    for (int64_t channel = first; channel < last; ++channel) {
      const typename P::Floats level = P::broadcast(thresholds[per_channel ? channel : 0]);
      halves[half] = P::template set<kComparison>(halves[half], P::load(x + channel * stride), level,
                                                  uint32_t{1} << (channel - first));
    }
  }
  P::store(halves[0], halves[1], bits);
}

template <class P, Comparison kComparison>
void pack_word(const PackInput& input, int64_t word, Range positions, uint64_t* bits) {
  const int64_t first = word * kWordBits;
  const int64_t left = input.channels - first;
  const int64_t channels = left < kWordBits ? left : kWordBits;
  const int64_t stride = input.positions;
  const float* x = input.x + first * stride;
  const float* thresholds = input.per_channel ? input.thresholds + first : input.thresholds;
  if (stride == 1) {  // one position, the first
    *bits = pack_row<P, kComparison>(x, thresholds, input.per_channel, channels);
    return;
  }
  int64_t position = positions.first;
  for (; position + P::kFloats <= positions.last; position += P::kFloats)
    pack_columns<P, kComparison>(x + position, stride, thresholds, input.per_channel, channels,
                                 bits + position);
  for (; position < positions.last; ++position) {
    bits[position] = 0;
    for (int64_t channel = 0; channel < channels; ++channel) {
      const float level = thresholds[input.per_channel ? channel : 0];
      const bool bit = compares<kComparison>(x[channel * stride + position], level);
      bits[position] |= uint64_t{bit} << channel;
    }
  }
}

template <class P>
void pack(const PackInput& input, int64_t word, Range positions, uint64_t* bits) {
  switch (input.comparison) {
    case Comparison::kGreater:
      return pack_word<P, Comparison::kGreater>(input, word, positions, bits);
    case Comparison::kGreaterOrEqual:
      return pack_word<P, Comparison::kGreaterOrEqual>(input, word, positions, bits);
    case Comparison::kLess:
      return pack_word<P, Comparison::kLess>(input, word, positions, bits);
    case Comparison::kLessOrEqual:
      return pack_word<P, Comparison::kLessOrEqual>(input, word, positions, bits);
  }
}

}  // namespace
}  // namespace onnxcomp::binary
