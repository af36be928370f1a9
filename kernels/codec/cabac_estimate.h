#pragma once

// Adaptive probabilities of the binary arithmetic coder.

#include <cstdint>

#if defined(__SSE2__) || defined(_M_X64)
#define ONNXCOMP_SSE2
#include <emmintrin.h>
#endif

#if defined(_MSC_VER)
#define ONNXCOMP_INLINE __forceinline
#define ONNXCOMP_COLD __declspec(noinline)
#define ONNXCOMP_RARE(condition) (condition)
#else
#define ONNXCOMP_INLINE inline __attribute__((always_inline))
#define ONNXCOMP_COLD __attribute__((noinline))
#define ONNXCOMP_RARE(condition) __builtin_expect(condition, 0)
#endif

namespace onnxcomp::codec::cabac {

inline constexpr int kEndBits = 8;  // zeros behind the last code
inline constexpr int kOddsBits = 17;
inline constexpr uint64_t kShortRange = uint64_t{1} << 32;  // renormalised below

inline constexpr uint16_t kCounted = 511;
inline constexpr uint16_t kFirstCount = 65535 - kCounted;
inline constexpr uint32_t kFastRate = 1 << 10;

// Estimates of P(1), times 2^16, at two rates: both 1 / (n + 1.5) after n bits, which is the estimate of
// Krichevsky and Trofimov, until the one comes to 1/64 and the other to 1/512.
struct alignas(8) Estimate {
  uint16_t fast = 1 << 15;
  uint16_t slow = 1 << 15;
  uint16_t count = kFirstCount;  // stays at 65535
  uint16_t zero = 0;
};

struct Rates {
  Estimate after[kCounted + 1];  // rates in place of estimates
};

constexpr Rates make_rates() {
  Rates rates{};
  for (uint32_t n = 0; n <= kCounted; ++n) {
    const uint32_t rate = (1u << 17) / (2 * n + 3);
    const uint32_t fast = rate < kFastRate ? kFastRate : rate;
    rates.after[n] = {static_cast<uint16_t>(fast), static_cast<uint16_t>(rate), 0, 0};
  }
  return rates;
}
inline constexpr Rates kRates = make_rates();

// The part of a range that stands for 1.
ONNXCOMP_INLINE uint64_t part_of(uint64_t range, const Estimate& estimate) noexcept {
  return (range >> kOddsBits) * (uint64_t{estimate.fast} + estimate.slow);
}

// After a bit, all ones or zero, and without branches: the estimate of what did not come shrinks by its
// rate. Bits are masks for the same reason throughout: a compiler may make branches of others, and no
// processor foretells these.
ONNXCOMP_INLINE void update(Estimate* estimate, uint64_t mask) noexcept {
#if defined(ONNXCOMP_SSE2)
  const Estimate* const rates = &kRates.after[estimate->count - kFirstCount];
  const __m128i rate = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(rates));
  const __m128i flip = _mm_cvtsi32_si128(static_cast<int>(mask));
  const __m128i before = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(estimate));
  const __m128i other = _mm_xor_si128(before, flip);
  const __m128i moved = _mm_xor_si128(_mm_sub_epi16(other, _mm_mulhi_epu16(other, rate)), flip);
  const __m128i one = _mm_set_epi16(0, 0, 0, 0, 0, 1, 0, 0);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(estimate), _mm_adds_epu16(moved, one));
#else
  const Estimate& rate = kRates.after[estimate->count - kFirstCount];
  const auto flip = static_cast<uint32_t>(mask & 0xffff);
  const auto moved = [&](uint32_t before, uint32_t by) {
    const uint32_t other = before ^ flip;
    return static_cast<uint16_t>((other - (other * by >> 16)) ^ flip);
  };
  *estimate = {moved(estimate->fast, rate.fast), moved(estimate->slow, rate.slow),
               static_cast<uint16_t>(estimate->count + (estimate->count < 65535)), 0};
#endif
}

}  // namespace onnxcomp::codec::cabac
