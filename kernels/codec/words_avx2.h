#pragma once

// For the files that are compiled for AVX2: nothing of it has a name outside of them.

#include <immintrin.h>

#include "codec/lanes.h"

namespace onnxcomp::codec {
namespace {

__m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
void store(void* to, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(to), value); }

// For every set of lanes that take a word: which of the next words lane i takes. Byte i of a row.
struct Spread {
  uint64_t rows[256];

  constexpr Spread() : rows() {
    for (int taking = 0; taking < 256; ++taking) {
      uint64_t row = 0, next = 0;
      for (int lane = 0; lane < 8; ++lane) {
        if (taking >> lane & 1) row |= next++ << (8 * lane);
      }
      rows[taking] = row;
    }
  }
};

constexpr Spread kSpread;

struct Words {
  const uint8_t* cursor;

  // Lanes below 2^16 take the next words, in the order of lanes.
  __m256i renormalize(__m256i next) {
    return spread(next, _mm256_cmpeq_epi32(_mm256_srli_epi32(next, 16), _mm256_setzero_si256()));
  }

  __m256i renormalize(__m256i next, __m256i active) {
    const __m256i below = _mm256_cmpeq_epi32(_mm256_srli_epi32(next, 16), _mm256_setzero_si256());
    return spread(next, _mm256_and_si256(active, below));
  }

 private:
  __m256i spread(__m256i next, __m256i low) {
    const auto taking = static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(low)));
    const __m128i row = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(&kSpread.rows[taking]));
    const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(cursor));
    const __m256i spread =
        _mm256_permutevar8x32_epi32(_mm256_cvtepu16_epi32(words), _mm256_cvtepu8_epi32(row));
    cursor += 2 * _mm_popcnt_u32(taking);
    return _mm256_blendv_epi8(next, _mm256_or_si256(_mm256_slli_epi32(next, 16), spread), low);
  }
};

}  // namespace
}  // namespace onnxcomp::codec
