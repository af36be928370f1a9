#pragma once

// Frequencies from a few parameters: the generalised Gaussian 2^-(|x - mean| / spread)^shape over
// every symbol's interval, in integers, so that every processor makes the same table.

#include <cstdint>

#include "codec/bits.h"
#include "codec/status.h"

namespace onnxcomp::codec {

struct GaussianParameters {
  int mean = 0;    // sixteenths of a code above symbol 0
  int spread = 0;  // log2, in eighths
  int shape = 8;   // eighths
};

inline constexpr int kSmallestShape = 3;
inline constexpr int kLargestShape = kSmallestShape + 15;
inline constexpr int kLargestMean = 16 * 512;    // and its negative: beyond the largest alphabet
inline constexpr int kLargestSpread = 8 * 12;    // and its negative

// Fills `frequency` of `alphabet` symbols, which sum to `slots`. alphabet <= slots.
void gaussian_frequencies(const GaussianParameters& parameters, int alphabet, int slots,
                          uint16_t* frequency);

// Parameters near the best for `counts`, and with the shape given if it is not 0. The length is in
// bits with 16 fractional ones.
GaussianParameters fit_gaussian(const uint32_t* counts, int alphabet, int slots, int resolution,
                                int shape, uint64_t* length);

}  // namespace onnxcomp::codec
