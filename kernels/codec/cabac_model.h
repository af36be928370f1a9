#pragma once

// What a cabac payload's header says.

#include <vector>

#include "codec/bits.h"
#include "codec/cabac.h"

namespace onnxcomp::codec::cabac {

inline constexpr int kMaxDepth = 6;
inline constexpr int64_t kMaxPositions = 64;  // more than that share weights

// Weights of the neighbours at one position of the kernel.
struct Neighbours {
  int32_t mean[5];   // of the codes 1, 2, 3 and `far` before and of the code above
  int32_t scale[6];  // of the magnitudes 1, 2, 3 and `far` before, the row's and the column's
  int32_t bias;
  // As they are multiplied: by codes; by magnitudes, a row's 2^5-fold and a column's 2^3-fold, and 32; by the
  // magnitude 1 before, which is part of the row's.
  alignas(16) int16_t means[8];
  alignas(16) int16_t scales[8];
  int32_t size_before;
};

struct Model {
  Profile profile = Profile::kPlain;
  int depth = 0;  // levels of the tree of magnitudes
  int32_t center = 0;
  int scale_levels = 1;
  int mean_levels = 1;  // odd
  int scale_shift = 0;
  int mean_shift = 0;
  int32_t start = 0;                // the mean magnitude, times 32
  std::vector<Neighbours> weights;  // one, or one a position of the kernel

  int32_t clip() const noexcept { return depth < kMaxDepth ? 2 << depth : 127; }
};

inline int64_t far_of(Geometry geometry) noexcept { return geometry.kernel > 4 ? geometry.kernel : 5; }
inline int64_t positions_of(Profile profile, Geometry geometry) noexcept {
  return profile == Profile::kPositions ? geometry.kernel : 1;
}

void prepare(Model* model);  // means and scales of the weights, size_before

void write_model(const Model& model, BitWriter* writer);
Status read_model(BitReader* reader, Geometry geometry, Model* model);

// Fits the neighbours' weights to the codes; everything else of `model` is set before.
void fit_neighbours(const int32_t* codes, Geometry geometry, Model* model);

}  // namespace onnxcomp::codec::cabac
