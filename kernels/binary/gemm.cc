#include "binary/gemm.h"

#include <algorithm>

namespace onnxcomp::binary {
namespace {

// Enough tasks that a few threads share them evenly, few enough that starting one costs nothing.
constexpr int64_t kTasksWanted = 16;
// Rows that read the same weights while these are in the nearest cache.
constexpr int64_t kStripRows = 64;

}  // namespace

Gemm::Gemm(const Kernel& kernel, const GemmWeights& weights, const uint64_t* x, int64_t rows)
    : kernel_(kernel),
      weights_(weights),
      x_(x),
      rows_(rows),
      strips_((rows + kStripRows - 1) / kStripRows),
      parts_(std::clamp<int64_t>(kTasksWanted / std::max<int64_t>(strips_, 1), 1,
                                 words_of(weights.out_features))) {}

Range Gemm::rows_of(int64_t task) const {
  const int64_t strip = task / parts_;
  return {rows_ * strip / strips_, rows_ * (strip + 1) / strips_};
}

Range Gemm::outputs_of(int64_t task) const {
  const int64_t part = task % parts_;
  const int64_t words = words_of(weights_.out_features);
  return {words * part / parts_ * kWordBits,
          std::min(words * (part + 1) / parts_ * kWordBits, weights_.out_features)};
}

void Gemm::run(int64_t task, const FloatOutput& out) const noexcept {
  const Range rows = rows_of(task);
  FloatOutput part = out;
  part.y += rows.first * weights_.out_features;
  kernel_.gemm_floats(weights_, {x_ + rows.first * weights_.row_words(), rows.last - rows.first},
                      outputs_of(task), part);
}

void Gemm::run(int64_t task, const BitOutput& out) const noexcept {
  const Range rows = rows_of(task);
  BitOutput part = out;
  part.y += rows.first * words_of(weights_.out_features);
  kernel_.gemm_bits(weights_, {x_ + rows.first * weights_.row_words(), rows.last - rows.first},
                    outputs_of(task), part);
}

}  // namespace onnxcomp::binary
