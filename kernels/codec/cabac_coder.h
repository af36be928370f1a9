#pragma once

// The binary arithmetic coder: 64-bit interval, renormalised by 32 bits, and its adaptive probabilities.

#include <cstdint>
#include <vector>

#if defined(__SSE2__) || defined(_M_X64)
#define ONNXCOMP_SSE2
#include <emmintrin.h>
#endif

#include "codec/geometry.h"
#include "codec/status.h"

#if defined(_MSC_VER)
#define ONNXCOMP_INLINE __forceinline
#define ONNXCOMP_COLD __declspec(noinline)
#else
#define ONNXCOMP_INLINE inline __attribute__((always_inline))
#define ONNXCOMP_COLD __attribute__((noinline))
#endif

namespace onnxcomp::codec::cabac {

inline constexpr int kEndBits = 8;  // zeros behind the last code

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

inline uint64_t doubled_probability(const Estimate& estimate) noexcept {
  return uint64_t{estimate.fast} + estimate.slow;
}

// Without branches: the estimate of what did not come shrinks by its rate. Selects are masks for the same
// reason throughout: a compiler may make branches of others, and no processor foretells these.
ONNXCOMP_INLINE void update(Estimate* estimate, bool value) noexcept {
#if defined(ONNXCOMP_SSE2)
  const Estimate* const rates = &kRates.after[estimate->count - kFirstCount];
  const __m128i rate = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(rates));
  const __m128i flip = _mm_cvtsi32_si128(-static_cast<int>(value));
  const __m128i before = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(estimate));
  const __m128i other = _mm_xor_si128(before, flip);
  const __m128i moved = _mm_xor_si128(_mm_sub_epi16(other, _mm_mulhi_epu16(other, rate)), flip);
  const __m128i one = _mm_set_epi16(0, 0, 0, 0, 0, 1, 0, 0);
  _mm_storel_epi64(reinterpret_cast<__m128i*>(estimate), _mm_adds_epu16(moved, one));
#else
  const Estimate& rate = kRates.after[estimate->count - kFirstCount];
  const auto flip = (0u - value) & 0xffff;
  const auto moved = [&](uint32_t before, uint32_t by) {
    const uint32_t other = before ^ flip;
    return static_cast<uint16_t>((other - (other * by >> 16)) ^ flip);
  };
  *estimate = {moved(estimate->fast, rate.fast), moved(estimate->slow, rate.slow),
               static_cast<uint16_t>(estimate->count + (estimate->count < 65535)), 0};
#endif
}

struct Interval {
  uint64_t range = ~uint64_t{0};
  uint64_t low = 0;  // a decoder's: the code's distance from it
};

class Encoder {
 public:
  using Code = const int32_t;
  static constexpr bool kDecodes = false;
  static void set(const int32_t*, int32_t) {}

  ONNXCOMP_INLINE bool bit(Interval* at, Estimate* estimate, bool value) {
    const uint64_t bound = (at->range >> 17) * doubled_probability(*estimate);
    const uint64_t rest = at->range - bound;
    update(estimate, value);
    const uint64_t mask = 0 - static_cast<uint64_t>(value);
    at->range = rest + (mask & (bound - rest));
    add(at, ~mask & bound);
    renormalise(at);
    return value;
  }

  bool raw(Interval* at, bool value) {
    at->range >>= 1;
    add(at, value ? at->range : 0);
    renormalise(at);
    return value;
  }

  // Of the numbers that decode to this the one with most zeros behind, without those.
  std::vector<uint8_t> finish() {
    interval.range >>= kEndBits;
    const uint64_t low = interval.low;
    uint64_t last = low;
    for (int zeros = 63; zeros >= 0; --zeros) {
      const uint64_t step = (uint64_t{1} << zeros) - 1;
      last = (low + step) & ~step;
      if (last - low < interval.range) break;
    }
    add(&interval, last - low);
    for (; last != 0; last <<= 8) bytes_.push_back(static_cast<uint8_t>(last >> 56));
    return std::move(bytes_);
  }

  Interval interval;

 private:
  ONNXCOMP_INLINE void add(Interval* at, uint64_t more) {
    at->low += more;
    if (at->low < more) carry();
  }

  ONNXCOMP_COLD void carry() {
    size_t at = bytes_.size();
    do ++bytes_[--at];
    while (bytes_[at] == 0);
  }

  ONNXCOMP_INLINE void renormalise(Interval* at) {
    if (at->range >= uint64_t{1} << 32) return;
    put(static_cast<uint32_t>(at->low >> 32));
    at->low <<= 32;
    at->range <<= 32;
  }

  ONNXCOMP_COLD void put(uint32_t word) {
    const uint8_t bytes[4] = {static_cast<uint8_t>(word >> 24), static_cast<uint8_t>(word >> 16),
                              static_cast<uint8_t>(word >> 8), static_cast<uint8_t>(word)};
    bytes_.insert(bytes_.end(), bytes, bytes + 4);
  }

  std::vector<uint8_t> bytes_;
};

// Reads zeros behind the end.
class Decoder {
 public:
  using Code = int32_t;
  static constexpr bool kDecodes = true;
  static void set(int32_t* code, int32_t value) { *code = value; }

  explicit Decoder(Bytes bytes) : bytes_(bytes) {
    interval.low = next();
    interval.low = interval.low << 32 | next();
  }

  ONNXCOMP_INLINE bool bit(Interval* at, Estimate* estimate, bool) noexcept {
    const uint64_t bound = (at->range >> 17) * doubled_probability(*estimate);
    const uint64_t rest = at->range - bound, above = at->low - bound;
    const bool value = at->low < bound;
    const uint64_t mask = 0 - static_cast<uint64_t>(value);
    update(estimate, value);
    at->range = rest + (mask & (bound - rest));
    at->low = above + (mask & bound);
    renormalise(at);
    return value;
  }

  bool raw(Interval* at, bool) noexcept {
    at->range >>= 1;
    const bool value = at->low >= at->range;
    at->low -= value ? at->range : 0;
    renormalise(at);
    return value;
  }

  // Whether the encoder ends here: all bytes read, at most eight zeros more, and its last bits.
  Status end() const noexcept {
    if (position_ < bytes_.size) return Status::kTrailingBytes;
    if (position_ - bytes_.size > 8) return Status::kTruncated;
    return interval.low < interval.range >> kEndBits ? Status::kOk : Status::kBadState;
  }

  Interval interval;

 private:
  ONNXCOMP_INLINE void renormalise(Interval* at) noexcept {
    if (at->range >= uint64_t{1} << 32) return;
    at->range <<= 32;
    at->low = at->low << 32 | next();
  }

  ONNXCOMP_COLD uint32_t next() noexcept {
    uint32_t word = 0;
    for (size_t i = position_; i < position_ + 4; ++i)
      word = word << 8 | (i < bytes_.size ? bytes_.data[i] : 0u);
    position_ += 4;
    return word;
  }

  Bytes bytes_;
  size_t position_ = 0;
};

}  // namespace onnxcomp::codec::cabac
