#pragma once

// How codes and sums are laid out for the kernel, and back; only avx512.cc includes it.

#include <immintrin.h>

#include "sparse_int8/kernels.h"

namespace onnxcomp::sparse_int8 {
namespace {

inline __m512i load(const uint8_t* from) { return _mm512_loadu_si512(from); }

void transpose_bytes(const uint8_t* from, int64_t from_stride, uint8_t* to, int64_t to_stride) {
  // Four rounds, each of which interleaves row i with row i + 8: index bits rotate by one, in each
  // quarter of the registers.
  __m512i rows[16], next[16];
  for (int i = 0; i < 16; ++i) rows[i] = load(from + i * from_stride);
  for (int round = 0; round < 4; ++round) {
    for (int i = 0; i < 8; ++i) {
      next[2 * i] = _mm512_unpacklo_epi8(rows[i], rows[i + 8]);
      next[2 * i + 1] = _mm512_unpackhi_epi8(rows[i], rows[i + 8]);
    }
    for (int i = 0; i < 16; ++i) rows[i] = next[i];
  }
  for (int i = 0; i < 16; ++i) {
    const auto quarter = [&](int64_t number) {
      return reinterpret_cast<__m128i*>(to + (i + 16 * number) * to_stride);
    };
    _mm_storeu_si128(quarter(0), _mm512_castsi512_si128(rows[i]));
    _mm_storeu_si128(quarter(1), _mm512_extracti32x4_epi32(rows[i], 1));
    _mm_storeu_si128(quarter(2), _mm512_extracti32x4_epi32(rows[i], 2));
    _mm_storeu_si128(quarter(3), _mm512_extracti32x4_epi32(rows[i], 3));
  }
}

void transpose_words(const uint8_t* from, int64_t from_stride, uint8_t* to, int64_t to_stride) {
  __m512i rows[16], pairs[16];
  for (int i = 0; i < 16; ++i) rows[i] = load(from + i * from_stride);
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {  // rows[i + j]: columns j, j + 4, j + 8, j + 12 of four rows
    rows[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    rows[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    rows[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    rows[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
  for (int j = 0; j < 4; ++j) {
    const __m512i a = _mm512_shuffle_i32x4(rows[j], rows[j + 4], 0x44);
    const __m512i b = _mm512_shuffle_i32x4(rows[j], rows[j + 4], 0xee);
    const __m512i c = _mm512_shuffle_i32x4(rows[j + 8], rows[j + 12], 0x44);
    const __m512i d = _mm512_shuffle_i32x4(rows[j + 8], rows[j + 12], 0xee);
    _mm512_storeu_si512(to + j * to_stride, _mm512_shuffle_i32x4(a, c, 0x88));
    _mm512_storeu_si512(to + (j + 4) * to_stride, _mm512_shuffle_i32x4(a, c, 0xdd));
    _mm512_storeu_si512(to + (j + 8) * to_stride, _mm512_shuffle_i32x4(b, d, 0x88));
    _mm512_storeu_si512(to + (j + 12) * to_stride, _mm512_shuffle_i32x4(b, d, 0xdd));
  }
}

__m512i interleave_vector(const __m128i* planes) {
  __m512i quads = _mm512_cvtepu8_epi32(planes[0]);
  for (int channel = 1; channel < kQuad; ++channel) {
    const __m512i wide = _mm512_cvtepu8_epi32(planes[channel]);
    quads = _mm512_or_si512(quads, _mm512_slli_epi32(wide, static_cast<unsigned>(8 * channel)));
  }
  return quads;
}

void interleave_row(const Planes& planes, int64_t first, int64_t count, uint8_t* to) {
  __m128i rows[kQuad];
  if (count < kLanes) {
    const auto mask = static_cast<__mmask16>((uint32_t{1} << count) - 1);
    for (int channel = 0; channel < kQuad; ++channel)
      rows[channel] = _mm_maskz_loadu_epi8(mask, planes.channels[channel] + first);
    _mm512_mask_storeu_epi32(to, mask, interleave_vector(rows));
    return;
  }
  for (int64_t i = 0; i < count; i += kLanes) {
    const int64_t at = i + kLanes <= count ? i : count - kLanes;  // the last vector overlaps
    for (int channel = 0; channel < kQuad; ++channel)
      rows[channel] =
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(planes.channels[channel] + first + at));
    _mm512_storeu_si512(to + at * kQuad, interleave_vector(rows));
  }
}

}  // namespace
}  // namespace onnxcomp::sparse_int8
