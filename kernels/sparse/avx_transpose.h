#pragma once

// Included by files that are compiled for AVX2 at least; everything is in an unnamed namespace.

#include <immintrin.h>

#include <cstdint>

namespace onnxcomp::sparse {
namespace {

inline void transpose_square(const float* from, int64_t from_stride, float* to,
                             int64_t to_stride) {
  // Rows i and i + 4 share a register, so that only two kinds of shuffle are needed.
  __m256 rows[8];
  for (int i = 0; i < 4; ++i) {
    for (int half = 0; half < 2; ++half) {
      const __m256 upper = _mm256_castps128_ps256(_mm_loadu_ps(from + i * from_stride + 4 * half));
      const __m128 lower = _mm_loadu_ps(from + (i + 4) * from_stride + 4 * half);
      rows[i + 4 * half] = _mm256_insertf128_ps(upper, lower, 1);
    }
  }
  for (int half = 0; half < 2; ++half) {
    const __m256* four = rows + 4 * half;
    const __m256 a = _mm256_unpacklo_ps(four[0], four[1]);
    const __m256 b = _mm256_unpackhi_ps(four[0], four[1]);
    const __m256 c = _mm256_unpacklo_ps(four[2], four[3]);
    const __m256 d = _mm256_unpackhi_ps(four[2], four[3]);
    float* out = to + 4 * half * to_stride;
    _mm256_storeu_ps(out, _mm256_shuffle_ps(a, c, _MM_SHUFFLE(1, 0, 1, 0)));
    _mm256_storeu_ps(out + to_stride, _mm256_shuffle_ps(a, c, _MM_SHUFFLE(3, 2, 3, 2)));
    _mm256_storeu_ps(out + 2 * to_stride, _mm256_shuffle_ps(b, d, _MM_SHUFFLE(1, 0, 1, 0)));
    _mm256_storeu_ps(out + 3 * to_stride, _mm256_shuffle_ps(b, d, _MM_SHUFFLE(3, 2, 3, 2)));
  }
}

}  // namespace
}  // namespace onnxcomp::sparse
