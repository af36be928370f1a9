#include <immintrin.h>

#include "sparse_int8/avx512_layouts.h"
#include "sparse_int8/interleaved_rows.h"
#include "sparse_int8/kernels.h"
#include "sparse_int8/unrolled.h"

namespace onnxcomp::sparse_int8 {
namespace {

__m512i broadcast_quad(const int8_t* values) {
  return _mm512_broadcastd_epi32(_mm_loadu_si32(values));
}

// Of the intrinsic gcc 12 makes two copies of every sum.
__m512i multiply_add(__m512i sum, __m512i quads, __m512i values) {
#ifdef __GNUC__
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(quads), "v"(values));
  return sum;
#else
  return _mm512_dpbusd_epi32(sum, quads, values);
#endif
}

__m512 scaled(__m512i sums, float scale) {
  return _mm512_mul_ps(_mm512_cvtepi32_ps(sums), _mm512_set1_ps(scale));
}

// What becomes of a row's sums. The conversion turns what lies beyond 2^31 into -2^31, which is
// right for the negative ones only, and can be spared a clamp where all are below.
template <bool kBounded>
struct Codes {
  using Result = uint8_t;

  static __m512i rounded(__m512i sums, float scale) {
    const __m512 value = scaled(sums, scale);
    return _mm512_cvtps_epi32(kBounded ? value : _mm512_min_ps(value, _mm512_set1_ps(255.0f)));
  }

  template <int kVectors>
  static void write(const __m512i* sums, float scale, int32_t zero_point, uint8_t* codes) {
    constexpr int kWhole = kVectors / 4 * 4;
    ONNXCOMP_UNROLLED
    for (int v = 0; v < kWhole; v += 4) {
      const __m512i zero = _mm512_set1_epi16(static_cast<int16_t>(zero_point));
      const __m512i low = _mm512_packs_epi32(rounded(sums[v], scale), rounded(sums[v + 1], scale));
      const __m512i high =
          _mm512_packs_epi32(rounded(sums[v + 2], scale), rounded(sums[v + 3], scale));
      const __m512i packed =
          _mm512_packus_epi16(_mm512_adds_epi16(low, zero), _mm512_adds_epi16(high, zero));
      // Packing goes by quarters of a register: dword 4 i + j holds columns 16 j + 4 i and on.
      const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
      _mm512_storeu_si512(codes + v * kLanes, _mm512_permutexvar_epi32(order, packed));
    }
    ONNXCOMP_UNROLLED
    for (int v = kWhole; v < kVectors; ++v) {
      const __m512i code = _mm512_add_epi32(rounded(sums[v], scale), _mm512_set1_epi32(zero_point));
      const __m512i positive = _mm512_max_epi32(code, _mm512_setzero_si512());
      _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + v * kLanes),
                       _mm512_cvtusepi32_epi8(positive));
    }
  }
};

struct Floats {
  using Result = float;

  template <int kVectors>
  static void write(const __m512i* sums, float scale, int32_t, float* results) {
    ONNXCOMP_UNROLLED
    for (int v = 0; v < kVectors; ++v)
      _mm512_storeu_ps(results + v * kLanes, scaled(sums[v], scale));
  }
};

template <int kRows, int kVectors>
void accumulate(const int8_t* values, const uint8_t* x, __m512i (&sums)[kRows][kVectors]) {
  __m512i quads[kVectors];
  ONNXCOMP_UNROLLED
  for (int v = 0; v < kVectors; ++v) quads[v] = load(x + v * kLanes * kQuad);
  ONNXCOMP_UNROLLED
  for (int row = 0; row < kRows; ++row) {
    const __m512i value = broadcast_quad(values + row * kQuad);
    ONNXCOMP_UNROLLED
    for (int v = 0; v < kVectors; ++v)
      sums[row][v] = multiply_add(sums[row][v], quads[v], value);
  }
}

// As many sums under way at once as the latency of vpdpbusd asks for.
template <int kRows, int kVectors, class Written>
void multiply_block(const PackedWeights& weights, const Scaling& scaling, const Columns& columns,
                    int64_t block, typename Written::Result* results, int64_t stride) {
  constexpr int kTogether = kRows * kVectors >= 8 ? 1 : 2;
  __m512i sums[kTogether][kRows][kVectors];
  ONNXCOMP_UNROLLED
  for (int i = 0; i < kTogether; ++i) {
    ONNXCOMP_UNROLLED
    for (int row = 0; row < kRows; ++row) {
      ONNXCOMP_UNROLLED
      for (int v = 0; v < kVectors; ++v)
        sums[i][row][v] = _mm512_set1_epi32(i == 0 ? scaling.bias[block * kRows + row] : 0);
    }
  }
  const int64_t last = weights.offsets[block + 1];
  int64_t entry = weights.offsets[block];
  for (; entry + kTogether <= last; entry += kTogether) {
    ONNXCOMP_UNROLLED
    for (int i = 0; i < kTogether; ++i) {
      accumulate<kRows, kVectors>(weights.values + (entry + i) * kRows * kQuad,
                                  columns.x + columns.places[weights.indices[entry + i]], sums[i]);
    }
  }
  if (kTogether == 2 && entry < last)
    accumulate<kRows, kVectors>(weights.values + entry * kRows * kQuad,
                                columns.x + columns.places[weights.indices[entry]], sums[0]);
  ONNXCOMP_UNROLLED
  for (int row = 0; row < kRows; ++row) {
    if constexpr (kTogether == 2) {
      ONNXCOMP_UNROLLED
      for (int v = 0; v < kVectors; ++v)
        sums[0][row][v] = _mm512_add_epi32(sums[0][row][v], sums[1][row][v]);
    }
    Written::template write<kVectors>(sums[0][row], scaling.scale[block * kRows + row],
                                      scaling.zero_point, results + row * stride);
  }
}

template <int kRows, int kVectors, class Written>
void multiply_blocks(const PackedWeights& weights, const Scaling& scaling, const Columns& columns,
                     BlockRange blocks, typename Written::Result* results, int64_t stride) {
  for (int64_t block = blocks.first; block < blocks.last; ++block)
    multiply_block<kRows, kVectors, Written>(weights, scaling, columns, block,
                                             results + (block - blocks.first) * kRows * stride,
                                             stride);
}

template <bool kEven>
const uint8_t* columns_of(const PackedWeights& weights, const Columns& columns, int64_t entry) {
  const int64_t quad = weights.indices[entry];
  return columns.x + (kEven ? quad * columns.spacing : columns.places[quad]);
}

// One row. A product takes one load of X, and that is what bounds the time: sixteen weights are
// loaded at once where a load for each would tell, which a short row of many vectors does not pay.
template <int kVectors, class Written, bool kEven>
void multiply_row(const PackedWeights& weights, const Scaling& scaling, const Columns& columns,
                  int64_t row, typename Written::Result* results) {
  constexpr int64_t kTogether = kVectors <= 5 ? kLanes : 1;
  __m512i sums[kVectors];
  ONNXCOMP_UNROLLED
  for (int v = 0; v < kVectors; ++v) sums[v] = _mm512_set1_epi32(scaling.bias[row]);
  const int64_t last = weights.offsets[row + 1];
  for (int64_t entry = weights.offsets[row]; entry < last;) {
    const int64_t end = last - entry < kTogether ? last : entry + kTogether;
    const auto mask = static_cast<__mmask16>((uint32_t{1} << (end - entry)) - 1);
    const int8_t* values = weights.values + entry * kQuad;
    const __m512i loaded =
        kTogether == 1 ? broadcast_quad(values) : _mm512_maskz_loadu_epi32(mask, values);
    __m512i lane = _mm512_setzero_si512();
    do {
      const uint8_t* x = columns_of<kEven>(weights, columns, entry);
      const __m512i value = kTogether == 1 ? loaded : _mm512_permutexvar_epi32(lane, loaded);
      lane = _mm512_add_epi32(lane, _mm512_set1_epi32(1));
      ONNXCOMP_UNROLLED
      for (int v = 0; v < kVectors; ++v)
        sums[v] = multiply_add(sums[v], load(x + v * kLanes * kQuad), value);
    } while (++entry < end);
  }
  Written::template write<kVectors>(sums, scaling.scale[row], scaling.zero_point, results);
}

template <int kVectors, class Written>
void multiply_rows(const PackedWeights& weights, const Scaling& scaling, const Columns& columns,
                   BlockRange rows, typename Written::Result* results, int64_t stride) {
  int64_t row = rows.first;
  if (columns.spacing == 0) {
    for (; row < rows.last; ++row, results += stride)
      multiply_row<kVectors, Written, false>(weights, scaling, columns, row, results);
  }
  for (; row < rows.last; ++row, results += stride)
    multiply_row<kVectors, Written, true>(weights, scaling, columns, row, results);
}

template <class Written>
void multiply_single_rows(const PackedWeights& weights, const Scaling& scaling,
                          const Columns& columns, BlockRange blocks,
                          typename Written::Result* results, int64_t stride) {
  switch (columns.vectors) {
    case 8:
      return multiply_rows<8, Written>(weights, scaling, columns, blocks, results, stride);
    case 7:
      return multiply_rows<7, Written>(weights, scaling, columns, blocks, results, stride);
    case 6:
      return multiply_rows<6, Written>(weights, scaling, columns, blocks, results, stride);
    case 5:
      return multiply_rows<5, Written>(weights, scaling, columns, blocks, results, stride);
    case 4:
      return multiply_rows<4, Written>(weights, scaling, columns, blocks, results, stride);
    case 3:
      return multiply_blocks<1, 3, Written>(weights, scaling, columns, blocks, results, stride);
    case 2:
      return multiply_blocks<1, 2, Written>(weights, scaling, columns, blocks, results, stride);
    default:
      return multiply_blocks<1, 1, Written>(weights, scaling, columns, blocks, results, stride);
  }
}

// Registers hold the sums of four rows and four vectors.
template <class Written>
void multiply_four_rows(const PackedWeights& weights, const Scaling& scaling, Columns columns,
                        BlockRange blocks, typename Written::Result* results, int64_t stride) {
  for (; columns.vectors > 4; columns.vectors -= 4) {
    multiply_blocks<4, 4, Written>(weights, scaling, columns, blocks, results, stride);
    columns.x += 4 * kLanes * kQuad;
    results += 4 * kLanes;
  }
  switch (columns.vectors) {
    case 4:
      return multiply_blocks<4, 4, Written>(weights, scaling, columns, blocks, results, stride);
    case 3:
      return multiply_blocks<4, 3, Written>(weights, scaling, columns, blocks, results, stride);
    case 2:
      return multiply_blocks<4, 2, Written>(weights, scaling, columns, blocks, results, stride);
    default:
      return multiply_blocks<4, 1, Written>(weights, scaling, columns, blocks, results, stride);
  }
}

template <class Written>
void multiply(const PackedWeights& weights, const Scaling& scaling, const Columns& columns,
              BlockRange blocks, typename Written::Result* results, int64_t stride) {
  if (weights.block_rows == 4) {
    multiply_four_rows<Written>(weights, scaling, columns, blocks, results, stride);
  } else {
    multiply_single_rows<Written>(weights, scaling, columns, blocks, results, stride);
  }
}

void multiply_to_codes(const PackedWeights& weights, const Scaling& scaling, const Columns& columns,
                       BlockRange blocks, uint8_t* codes, int64_t stride) {
  if (scaling.bounded) {
    multiply<Codes<true>>(weights, scaling, columns, blocks, codes, stride);
  } else {
    multiply<Codes<false>>(weights, scaling, columns, blocks, codes, stride);
  }
}

}  // namespace

const Kernel kAvx512 = {"avx512",        multiply_to_codes, multiply<Floats>,
                        transpose_bytes, transpose_words,   interleave_rows<interleave_row>};

}  // namespace onnxcomp::sparse_int8
