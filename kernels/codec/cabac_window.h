#pragma once

// The neighbours of a code and their weighted sums.

#include "codec/cabac_coder.h"
#include "codec/cabac_model.h"

namespace onnxcomp::codec::cabac {

inline constexpr int kRowMemory = 5;     // a row's magnitude is a mean, times 2^5
inline constexpr int kColumnMemory = 3;  // a column's, times 2^3

inline int32_t magnitude_of(int32_t value) { return value < 0 ? -value : value; }
inline int32_t clamped(int32_t value, int32_t low, int32_t high) {
  return value < low ? low : value > high ? high : value;
}

struct Leanings {
  int32_t mean;   // times 2^mean_shift: the sides that the neighbours lean to
  int32_t scale;  // times 2^(scale_shift + kRowMemory): the level of magnitudes
};

// The three codes before, and the sums over all neighbours.
class Window {
 public:
  ONNXCOMP_INLINE Leanings lean(const Neighbours& weights, int32_t far, int32_t above, int32_t row,
                                int32_t column) const {
#if defined(ONNXCOMP_SSE2)
    const auto load = [](const int16_t* from) { return _mm_load_si128(reinterpret_cast<const __m128i*>(from)); };
    const __m128i codes = _mm_insert_epi16(_mm_insert_epi16(before_, far, 3), above, 4);
    const __m128i magnitudes = _mm_max_epi16(codes, _mm_sub_epi16(_mm_setzero_si128(), codes));
    const __m128i means = _mm_madd_epi16(codes, load(weights.means));
    const __m128i sizes = _mm_insert_epi16(_mm_insert_epi16(magnitudes, row, 4), column, 5);
    const __m128i scales = _mm_madd_epi16(sizes, load(weights.scales));
    const __m128i halves = _mm_add_epi32(_mm_unpacklo_epi32(means, scales), _mm_unpackhi_epi32(means, scales));
    const __m128i whole = _mm_add_epi32(halves, _mm_unpackhi_epi64(halves, halves));
    const auto sums = static_cast<uint64_t>(_mm_cvtsi128_si64(whole));
    return {static_cast<int32_t>(sums), static_cast<int32_t>(sums >> 32)};
#else
    const int32_t codes[5] = {before_[0], before_[1], before_[2], far, above};
    const int32_t sizes[7] = {magnitude_of(before_[0]), magnitude_of(before_[1]), magnitude_of(before_[2]),
                              magnitude_of(far), row, column, 32};
    Leanings sums = {0, 0};
    for (int i = 0; i < 5; ++i) sums.mean += weights.means[i] * codes[i];
    for (int i = 0; i < 7; ++i) sums.scale += weights.scales[i] * sizes[i];
    return sums;
#endif
  }

  ONNXCOMP_INLINE void push(int32_t code) {
#if defined(ONNXCOMP_SSE2)
    const __m128i ones = _mm_set_epi16(0, 32, 0, 0, 0, 0, 0, 0);
    before_ = _mm_or_si128(_mm_insert_epi16(_mm_move_epi64(_mm_slli_epi64(before_, 16)), code, 0), ones);
#else
    before_[2] = before_[1];
    before_[1] = before_[0];
    before_[0] = code;
#endif
  }

 private:
#if defined(ONNXCOMP_SSE2)
  __m128i before_ = _mm_set_epi16(0, 32, 0, 0, 0, 0, 0, 0);  // 32 is the bias's factor
#else
  int32_t before_[3] = {0, 0, 0};
#endif
};

}  // namespace onnxcomp::codec::cabac
