#pragma once

// What encoder and decoder know of the codes before, and the estimates that follow from it.

#include <vector>

#include "codec/cabac_estimate.h"
#include "codec/cabac_model.h"

namespace onnxcomp::codec::cabac {

inline constexpr int kRowMemory = 5;     // a row's magnitude is a mean, times 2^5
inline constexpr int kColumnMemory = 3;  // a column's, times 2^3
inline constexpr int kPrefixes = 32;

inline int32_t magnitude_of(int32_t value) { return value < 0 ? -value : value; }
inline int32_t clamped(int32_t value, int32_t low, int32_t high) {
  return value < low ? low : value > high ? high : value;
}

// Of a chunk, from row to row.
struct Statistics {
  Statistics(const Model& model, Geometry geometry)
      : recent(static_cast<size_t>(geometry.row_length() + far_of(geometry) + 1), 0),
        columns(static_cast<size_t>(geometry.row_length() + 1), model.start >> (kRowMemory - kColumnMemory)),
        tree((static_cast<size_t>(model.scale_levels) * static_cast<size_t>(model.mean_levels)) << model.depth),
        sign(static_cast<size_t>(model.mean_levels)),
        prefix(kPrefixes) {}

  std::vector<int8_t> recent;  // `far` zeros, the row above until a code takes its place, a zero
  std::vector<int32_t> columns;
  std::vector<Estimate> tree;  // [scale level][side][node]; node 0 is the significance
  std::vector<Estimate> sign;
  std::vector<Estimate> prefix;
};

// Weighted sums of neighbours: which side they lean to, and how large they are.
struct Leanings {
  int32_t mean;   // times 2^mean_shift
  int32_t scale;  // times 2^(scale_shift + kRowMemory)
};

// Goes along a row. It is to be a local variable: a compiler keeps it in registers.
class Contexts {
 public:
  ONNXCOMP_INLINE Contexts(const Model& model, Geometry geometry, Statistics* statistics)
      : first_(model.weights.data()),
        end_(first_ + model.weights.size()),
        weights_(first_),
        far_(far_of(geometry)),
        here_(statistics->recent.data() + far_),
        column_(statistics->columns.data()),
        tree_(statistics->tree.data()),
        sign_(statistics->sign.data() + model.mean_levels / 2),
        half_(model.mean_levels / 2),
        top_(model.scale_levels - 1),
        rounding_(1 << model.mean_shift >> 1),
        mean_shift_(model.mean_shift),
        scale_shift_(model.scale_shift + kRowMemory),
        row_(model.start) {
    others_ = weighted(0, 0, here_[-far_], *here_, row_, *column_);
  }

  // Estimates of the code that is next.
  template <int kDepth>
  ONNXCOMP_INLINE void lean() {
    const int32_t mean = others_.mean + weights_->mean[0] * one_before_;
    const int32_t scale = others_.scale + weights_->size_before * magnitude_;
    side_ = clamped((mean + rounding_) >> mean_shift_, -half_, half_);
    const int32_t level = clamped(scale >> scale_shift_, 0, top_);
    middle_ = tree_ + (static_cast<ptrdiff_t>(level * (2 * half_ + 1) + half_) << kDepth);
  }
  int32_t side() const { return side_; }
  Estimate* sign() const { return sign_ + side_; }
  // The tree of the level, for codes that `lean` to that side.
  template <int kDepth>
  ONNXCOMP_INLINE Estimate* nodes(int32_t lean) const {
    return middle_ + static_cast<ptrdiff_t>(lean) * (1 << kDepth);
  }

  // All of the sums for the next but one that does not depend on the next code: a decoder has the time
  // while it decodes that.
  ONNXCOMP_INLINE void look_ahead() {
    if (++weights_ == end_) weights_ = first_;
    row_ -= row_ >> kRowMemory;
    of_column_ = *column_ - (*column_ >> kColumnMemory);
    others_ = weighted(one_before_, two_before_, here_[1 - far_], here_[1], row_, column_[1]);
    two_before_ = one_before_;
  }

  // The code, as neighbours see it.
  ONNXCOMP_INLINE void push(int32_t code, int32_t magnitude) {
    one_before_ = code;
    magnitude_ = magnitude;
    *here_++ = static_cast<int8_t>(code);
    row_ += magnitude;
    *column_++ = of_column_ + magnitude;
  }

 private:
  // Without the code before, whose magnitude the row lacks, too.
  ONNXCOMP_INLINE Leanings weighted(int32_t two, int32_t three, int32_t far, int32_t above, int32_t row,
                                    int32_t column) const {
#if defined(ONNXCOMP_SSE2)
    const auto load = [](const int16_t* from) { return _mm_load_si128(reinterpret_cast<const __m128i*>(from)); };
    __m128i codes = _mm_cvtsi32_si128(static_cast<int>(static_cast<uint32_t>(two) << 16));
    codes = _mm_insert_epi16(_mm_insert_epi16(_mm_insert_epi16(codes, three, 2), far, 3), above, 4);
    const __m128i magnitudes = _mm_max_epi16(codes, _mm_sub_epi16(_mm_setzero_si128(), codes));
    const __m128i means = _mm_madd_epi16(codes, load(weights_->means));
    const __m128i sizes = _mm_insert_epi16(_mm_insert_epi16(magnitudes, row, 4), column, 5);
    const __m128i ones = _mm_set_epi16(0, 32, 0, 0, 0, 0, 0, 0);  // 32 is the bias's factor
    const __m128i scales = _mm_madd_epi16(_mm_or_si128(sizes, ones), load(weights_->scales));
    const __m128i halves = _mm_add_epi32(_mm_unpacklo_epi32(means, scales), _mm_unpackhi_epi32(means, scales));
    const __m128i whole = _mm_add_epi32(halves, _mm_unpackhi_epi64(halves, halves));
    const auto sums = static_cast<uint64_t>(_mm_cvtsi128_si64(whole));
    return {static_cast<int32_t>(sums), static_cast<int32_t>(sums >> 32)};
#else
    const int32_t codes[4] = {two, three, far, above};
    const int32_t sizes[6] = {magnitude_of(two), magnitude_of(three), magnitude_of(far), row, column, 32};
    Leanings sums = {0, 0};
    for (int i = 0; i < 4; ++i) sums.mean += weights_->means[i + 1] * codes[i];
    for (int i = 0; i < 6; ++i) sums.scale += weights_->scales[i + 1] * sizes[i];
    return sums;
#endif
  }

  const Neighbours* const first_;
  const Neighbours* const end_;
  const Neighbours* weights_;  // of the position that is next
  const int64_t far_;
  int8_t* here_;
  int32_t* column_;
  Estimate* const tree_;
  Estimate* const sign_;
  const int32_t half_, top_, rounding_;
  const int mean_shift_, scale_shift_;
  int32_t row_;
  int32_t of_column_ = 0;
  int32_t one_before_ = 0, two_before_ = 0, magnitude_ = 0;
  Leanings others_;
  int32_t side_ = 0;
  Estimate* middle_ = nullptr;
};

// Calls all<depth>() for the depth of a model, which a compiler knows then.
template <class Rows>
void with_depth(int depth, Rows* rows) {
  switch (depth) {
    case 0: return rows->template all<0>();
    case 1: return rows->template all<1>();
    case 2: return rows->template all<2>();
    case 3: return rows->template all<3>();
    case 4: return rows->template all<4>();
    case 5: return rows->template all<5>();
    default: return rows->template all<6>();
  }
}

}  // namespace onnxcomp::codec::cabac
