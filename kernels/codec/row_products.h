#pragma once

// Sums of products of small integers, exact, two samples at a time.

#include <cstdint>
#include <cstring>

#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#endif

namespace onnxcomp::codec::rans {

// Six numbers below 512 of a sample and two zeros.
struct alignas(16) Sample {
  int16_t values[8] = {};

  Sample() = default;
  Sample(int32_t a, int32_t b, int32_t c, int32_t d, int32_t e, int32_t f) {
    const auto half = [](int32_t value) { return static_cast<int16_t>(value); };
#if defined(__SSE2__) || defined(_M_X64)
    // In one piece: what is stored in several is slow to load in one.
    _mm_store_si128(reinterpret_cast<__m128i*>(values),
                    _mm_setr_epi16(half(a), half(b), half(c), half(d), half(e), half(f), 0, 0));
#else
    const int16_t all[] = {half(a), half(b), half(c), half(d), half(e), half(f)};
    std::memcpy(values, all, sizeof all);
#endif
  }
};

class Products {
 public:
  static constexpr int kValues = 6;

  void add(const Sample& sample) {
    if (waiting_ = !waiting_; waiting_) {
      first_ = sample;
      return;
    }
    add_both(first_, sample);
    if (++held_ == kMostHeld) flush();
  }

  // Everything that was added.
  void finish() {
    if (waiting_) add(Sample{});
    flush();
  }

  double of(int a, int b) const { return static_cast<double>(a >= b ? sums_[b][a] : sums_[a][b]); }

 private:
  static constexpr int kMostHeld = 2048;  // pairs whose sums 32 bits hold

  void add_both(const Sample& one, const Sample& two) {
#if defined(__SSE2__) || defined(_M_X64)
    const __m128i ones = _mm_load_si128(reinterpret_cast<const __m128i*>(one.values));
    const __m128i twos = _mm_load_si128(reinterpret_cast<const __m128i*>(two.values));
    const __m128i front = _mm_unpacklo_epi16(ones, twos), back = _mm_unpackhi_epi16(ones, twos);
    row(0, _mm_shuffle_epi32(front, 0x00), front, back);
    row(1, _mm_shuffle_epi32(front, 0x55), front, back);
    row(2, _mm_shuffle_epi32(front, 0xaa), front, back);
    row(3, _mm_shuffle_epi32(front, 0xff), front, back);
    add_to(held_sums_[4] + 4, _mm_madd_epi16(_mm_shuffle_epi32(back, 0x00), back));
    add_to(held_sums_[5] + 4, _mm_madd_epi16(_mm_shuffle_epi32(back, 0x55), back));
#else
    for (int a = 0; a < kValues; ++a) {
      for (int b = a; b < kValues; ++b)
        held_sums_[a][b] += one.values[a] * one.values[b] + two.values[a] * two.values[b];
    }
#endif
  }

#if defined(__SSE2__) || defined(_M_X64)
  void row(int a, __m128i pair, __m128i front, __m128i back) {
    add_to(held_sums_[a], _mm_madd_epi16(pair, front));
    add_to(held_sums_[a] + 4, _mm_madd_epi16(pair, back));
  }

  static void add_to(int32_t* sums, __m128i more) {
    auto* const at = reinterpret_cast<__m128i*>(sums);
    _mm_store_si128(at, _mm_add_epi32(_mm_load_si128(at), more));
  }
#endif

  void flush() {
    for (int a = 0; a < kValues; ++a) {
      for (int b = a; b < kValues; ++b) sums_[a][b] += held_sums_[a][b];
    }
    std::memset(held_sums_, 0, sizeof held_sums_);
    held_ = 0;
  }

  alignas(16) int32_t held_sums_[kValues][8] = {};  // [a][b], b at least a
  int64_t sums_[kValues][kValues] = {};
  Sample first_{};
  bool waiting_ = false;
  int held_ = 0;
};

}  // namespace onnxcomp::codec::rans
