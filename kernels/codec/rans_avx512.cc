#include <immintrin.h>

#include "codec/lanes.h"

namespace onnxcomp::codec {
namespace {

struct Words {
  const uint8_t* cursor;

  // Lanes below 2^16 take the next words, in the order of lanes.
  __m512i renormalize(__m512i next) {
    const __mmask16 low = _mm512_cmplt_epu32_mask(next, _mm512_set1_epi32(kLowestState));
    const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(cursor));
    const __m512i spread = _mm512_maskz_expand_epi32(low, _mm512_cvtepu16_epi32(words));
    cursor += 2 * _mm_popcnt_u32(low);
    return _mm512_mask_or_epi32(next, low, _mm512_slli_epi32(next, 16), spread);
  }
};

void note(__mmask16 escaped, uint32_t first, Escapes* escapes) {
  for (uint32_t left = escaped; left != 0; left &= left - 1)
    escapes->positions[escapes->count++] = first + static_cast<uint32_t>(_tzcnt_u32(left));
}

int64_t decode_groups(LaneStates* lanes, const LaneTable& table, int64_t groups, int32_t* codes,
                      Escapes* escapes) {
  const __m128i resolution = _mm_cvtsi32_si128(table.resolution);
  const __m512i mask = _mm512_set1_epi32((1 << table.resolution) - 1);
  const __m512i twelve_bits = _mm512_set1_epi32(0xfff);
  const __m512i lowest = _mm512_set1_epi32(table.lowest);
  const __m512i first_escape = _mm512_set1_epi32(static_cast<int>(table.first_escape));
  __m512i states[2] = {_mm512_loadu_si512(lanes->state), _mm512_loadu_si512(lanes->state + 16)};
  Words words = {lanes->cursor};
  int64_t group = 0;
  for (; group < groups && lanes->end - words.cursor >= 2 * kLanes; ++group) {
    __m512i entries[2], next[2];
    for (int half = 0; half < 2; ++half)
      entries[half] = _mm512_i32gather_epi32(_mm512_and_si512(states[half], mask), table.entries, 4);
    for (int half = 0; half < 2; ++half) {
      const __m512i frequency = _mm512_and_si512(_mm512_srli_epi32(entries[half], 12), twelve_bits);
      const __m512i bias = _mm512_and_si512(entries[half], twelve_bits);
      next[half] = _mm512_add_epi32(
          _mm512_mullo_epi32(frequency, _mm512_srl_epi32(states[half], resolution)), bias);
    }
    for (int half = 0; half < 2; ++half) states[half] = words.renormalize(next[half]);
    for (int half = 0; half < 2; ++half) {
      const __m512i symbols = _mm512_srli_epi32(entries[half], 24);
      _mm512_storeu_si512(codes + group * kLanes + 16 * half, _mm512_add_epi32(symbols, lowest));
      const __mmask16 escaped = _mm512_cmpge_epu32_mask(entries[half], first_escape);
      if (escaped) note(escaped, static_cast<uint32_t>(group * kLanes + 16 * half), escapes);
    }
  }
  _mm512_storeu_si512(lanes->state, states[0]);
  _mm512_storeu_si512(lanes->state + 16, states[1]);
  lanes->cursor = words.cursor;
  return group;
}

void scale_in_place(void* values, int64_t count, float scale) {
  auto* words = static_cast<char*>(values);
  const __m512 factor = _mm512_set1_ps(scale);
  for (int64_t i = 0; i < count; i += 16) {
    const int64_t left = count - i;
    const auto some = static_cast<__mmask16>(left >= 16 ? 0xffff : (1 << left) - 1);
    const __m512i codes = _mm512_maskz_loadu_epi32(some, words + 4 * i);
    const __m512 product = _mm512_mul_ps(_mm512_cvtepi32_ps(codes), factor);
    _mm512_mask_storeu_epi32(words + 4 * i, some, _mm512_castps_si512(product));
  }
}

}  // namespace

const LaneKernel kAvx512Lanes = {"avx512", decode_groups, scale_in_place};

}  // namespace onnxcomp::codec
