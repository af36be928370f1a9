#include <immintrin.h>

#include "sparse_int8/interleaved_rows.h"
#include "sparse_int8/kernels.h"

namespace onnxcomp::sparse_int8 {
namespace {

constexpr int64_t kHalf = kLanes / 2;

__m256i load(const uint8_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

// Products of bytes are added up in pairs, and a pair of u8 x s8 fits no 16 bits: bytes are
// widened, the even ones of each quad and the odd ones apart.
struct WideQuads {
  __m256i even;
  __m256i odd;
};

WideQuads widen(__m256i quads) {
  return {_mm256_and_si256(quads, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(quads, 8)};
}

WideQuads broadcast_signed(const int8_t* values) {
  const __m256i quads = _mm256_broadcastd_epi32(_mm_loadu_si32(values));
  return {_mm256_srai_epi16(_mm256_slli_epi16(quads, 8), 8), _mm256_srai_epi16(quads, 8)};
}

__m256i multiply_add(__m256i sum, const WideQuads& x, const WideQuads& value) {
  const __m256i even = _mm256_madd_epi16(x.even, value.even);
  return _mm256_add_epi32(sum, _mm256_add_epi32(even, _mm256_madd_epi16(x.odd, value.odd)));
}

__m256 scaled(__m256i sums, float scale) {
  return _mm256_mul_ps(_mm256_cvtepi32_ps(sums), _mm256_set1_ps(scale));
}

// The conversion turns what lies beyond 2^31 into -2^31, which is right for the negative ones only.
__m256i rounded(__m256i sums, float scale) {
  return _mm256_cvtps_epi32(_mm256_min_ps(scaled(sums, scale), _mm256_set1_ps(255.0f)));
}

void write_row(__m256i low, __m256i high, float scale, int32_t zero_point, uint8_t* codes) {
  // Packing goes by halves of a register: columns 0-3 and 8-11, then 4-7 and 12-15.
  const __m256i words = _mm256_packs_epi32(rounded(low, scale), rounded(high, scale));
  const __m256i ordered = _mm256_permute4x64_epi64(words, _MM_SHUFFLE(3, 1, 2, 0));
  const __m256i zero = _mm256_set1_epi16(static_cast<int16_t>(zero_point));
  const __m256i shifted = _mm256_adds_epi16(ordered, zero);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(codes),
      _mm_packus_epi16(_mm256_castsi256_si128(shifted), _mm256_extracti128_si256(shifted, 1)));
}

void write_row(__m256i low, __m256i high, float scale, int32_t, float* results) {
  _mm256_storeu_ps(results, scaled(low, scale));
  _mm256_storeu_ps(results + kHalf, scaled(high, scale));
}

// One block for one vector of columns.
template <int kRows, class Result>
void multiply_block(const PackedWeights& weights, const Scaling& scaling, const Columns& columns,
                    int64_t block, int64_t vector, Result* results, int64_t stride) {
  __m256i sums[kRows][2];
  for (int row = 0; row < kRows; ++row)
    sums[row][0] = sums[row][1] = _mm256_set1_epi32(scaling.bias[block * kRows + row]);
  const uint8_t* x = columns.x + vector * kLanes * kQuad;
  for (int64_t entry = weights.offsets[block]; entry < weights.offsets[block + 1]; ++entry) {
    const uint8_t* quads = x + columns.places[weights.indices[entry]];
    const WideQuads low = widen(load(quads));
    const WideQuads high = widen(load(quads + kHalf * kQuad));
    for (int row = 0; row < kRows; ++row) {
      const WideQuads value = broadcast_signed(weights.values + (entry * kRows + row) * kQuad);
      sums[row][0] = multiply_add(sums[row][0], low, value);
      sums[row][1] = multiply_add(sums[row][1], high, value);
    }
  }
  for (int row = 0; row < kRows; ++row)
    write_row(sums[row][0], sums[row][1], scaling.scale[block * kRows + row], scaling.zero_point,
              results + row * stride + vector * kLanes);
}

template <class Result>
void multiply(const PackedWeights& weights, const Scaling& scaling, const Columns& columns,
              BlockRange blocks, Result* results, int64_t stride) {
  for (int64_t block = blocks.first; block < blocks.last; ++block) {
    Result* rows = results + (block - blocks.first) * weights.block_rows * stride;
    for (int64_t vector = 0; vector < columns.vectors; ++vector) {
      if (weights.block_rows == 4) {
        multiply_block<4>(weights, scaling, columns, block, vector, rows, stride);
      } else {
        multiply_block<1>(weights, scaling, columns, block, vector, rows, stride);
      }
    }
  }
}

void transpose_bytes(const uint8_t* from, int64_t from_stride, uint8_t* to, int64_t to_stride) {
  for (int64_t column = 0; column < kTransposedColumns; column += 32) {
    // Four rounds, each of which interleaves row i with row i + 8: index bits rotate by one.
    __m256i rows[16], next[16];
    for (int i = 0; i < 16; ++i) rows[i] = load(from + i * from_stride + column);
    for (int round = 0; round < 4; ++round) {
      for (int i = 0; i < 8; ++i) {
        next[2 * i] = _mm256_unpacklo_epi8(rows[i], rows[i + 8]);
        next[2 * i + 1] = _mm256_unpackhi_epi8(rows[i], rows[i + 8]);
      }
      for (int i = 0; i < 16; ++i) rows[i] = next[i];
    }
    for (int i = 0; i < 16; ++i) {
      uint8_t* row = to + (column + i) * to_stride;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(row), _mm256_castsi256_si128(rows[i]));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(row + 16 * to_stride),
                       _mm256_extracti128_si256(rows[i], 1));
    }
  }
}

// Eight rows of eight words.
void transpose_square(const uint8_t* from, int64_t from_stride, uint8_t* to, int64_t to_stride) {
  __m256i rows[8], pairs[8];
  for (int i = 0; i < 8; ++i) rows[i] = load(from + i * from_stride);
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {  // rows[i + j]: columns j and j + 4 of four rows
    rows[i] = _mm256_unpacklo_epi64(pairs[i], pairs[i + 2]);
    rows[i + 1] = _mm256_unpackhi_epi64(pairs[i], pairs[i + 2]);
    rows[i + 2] = _mm256_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    rows[i + 3] = _mm256_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
  for (int j = 0; j < 4; ++j) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + j * to_stride),
                        _mm256_permute2x128_si256(rows[j], rows[j + 4], 0x20));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + (j + 4) * to_stride),
                        _mm256_permute2x128_si256(rows[j], rows[j + 4], 0x31));
  }
}

void transpose_words(const uint8_t* from, int64_t from_stride, uint8_t* to, int64_t to_stride) {
  for (int64_t i = 0; i < 2; ++i) {
    for (int64_t j = 0; j < 2; ++j)
      transpose_square(from + 8 * i * from_stride + 32 * j, from_stride,
                       to + 8 * j * to_stride + 32 * i, to_stride);
  }
}

void interleave_row(const Planes& planes, int64_t first, int64_t count, uint8_t* to) {
  const auto interleave_vector = [&](int64_t at) {
    __m128i rows[kQuad];
    for (int channel = 0; channel < kQuad; ++channel)
      rows[channel] =
          _mm_loadu_si128(reinterpret_cast<const __m128i*>(planes.channels[channel] + first + at));
    auto* quads = reinterpret_cast<__m128i*>(to + at * kQuad);
    const __m128i low[2] = {_mm_unpacklo_epi8(rows[0], rows[1]),
                            _mm_unpacklo_epi8(rows[2], rows[3])};
    const __m128i high[2] = {_mm_unpackhi_epi8(rows[0], rows[1]),
                             _mm_unpackhi_epi8(rows[2], rows[3])};
    _mm_storeu_si128(quads, _mm_unpacklo_epi16(low[0], low[1]));
    _mm_storeu_si128(quads + 1, _mm_unpackhi_epi16(low[0], low[1]));
    _mm_storeu_si128(quads + 2, _mm_unpacklo_epi16(high[0], high[1]));
    _mm_storeu_si128(quads + 3, _mm_unpackhi_epi16(high[0], high[1]));
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) interleave_vector(i);
  if (i < count && count >= kLanes) return interleave_vector(count - kLanes);
  for (; i < count; ++i) {
    for (int64_t channel = 0; channel < kQuad; ++channel)
      to[i * kQuad + channel] = planes.channels[channel][first + i];
  }
}

}  // namespace

const Kernel kAvx2 = {"avx2",          multiply<uint8_t>, multiply<float>,
                      transpose_bytes, transpose_words,   interleave_rows<interleave_row>};

}  // namespace onnxcomp::sparse_int8
