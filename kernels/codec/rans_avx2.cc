#include <immintrin.h>

#include "codec/lanes.h"

namespace onnxcomp::codec {
namespace {

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
    const __m256i low = _mm256_cmpeq_epi32(_mm256_srli_epi32(next, 16), _mm256_setzero_si256());
    const auto taking = static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(low)));
    const __m128i row = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(&kSpread.rows[taking]));
    const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i*>(cursor));
    const __m256i spread =
        _mm256_permutevar8x32_epi32(_mm256_cvtepu16_epi32(words), _mm256_cvtepu8_epi32(row));
    cursor += 2 * _mm_popcnt_u32(taking);
    return _mm256_blendv_epi8(next, _mm256_or_si256(_mm256_slli_epi32(next, 16), spread), low);
  }
};

void note(unsigned escaped, uint32_t first, Escapes* escapes) {
  for (; escaped != 0; escaped &= escaped - 1)
    escapes->positions[escapes->count++] = first + static_cast<uint32_t>(_tzcnt_u32(escaped));
}

int64_t decode_groups(LaneStates* lanes, const LaneTable& table, int64_t groups, int32_t* codes,
                      Escapes* escapes) {
  constexpr int kParts = kLanes / 8;
  const __m128i resolution = _mm_cvtsi32_si128(table.resolution);
  const __m256i mask = _mm256_set1_epi32((1 << table.resolution) - 1);
  const __m256i twelve_bits = _mm256_set1_epi32(0xfff);
  const __m256i lowest = _mm256_set1_epi32(table.lowest);
  const __m256i first_escape = _mm256_set1_epi32(static_cast<int>(table.first_escape));
  const int* entries_of = reinterpret_cast<const int*>(table.entries);
  __m256i states[kParts];
  for (int part = 0; part < kParts; ++part)
    states[part] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lanes->state + 8 * part));
  Words words = {lanes->cursor};
  int64_t group = 0;
  for (; group < groups && lanes->end - words.cursor >= 2 * kLanes; ++group) {
    __m256i entries[kParts], next[kParts];
    for (int part = 0; part < kParts; ++part)
      entries[part] = _mm256_i32gather_epi32(entries_of, _mm256_and_si256(states[part], mask), 4);
    for (int part = 0; part < kParts; ++part) {
      const __m256i frequency = _mm256_and_si256(_mm256_srli_epi32(entries[part], 12), twelve_bits);
      const __m256i bias = _mm256_and_si256(entries[part], twelve_bits);
      next[part] = _mm256_add_epi32(
          _mm256_mullo_epi32(frequency, _mm256_srl_epi32(states[part], resolution)), bias);
    }
    for (int part = 0; part < kParts; ++part) states[part] = words.renormalize(next[part]);
    for (int part = 0; part < kParts; ++part) {
      const __m256i codes_of = _mm256_add_epi32(_mm256_srli_epi32(entries[part], 24), lowest);
      const int64_t at = group * kLanes + 8 * part;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(codes + at), codes_of);
      const __m256i escaped =
          _mm256_cmpeq_epi32(_mm256_max_epu32(entries[part], first_escape), entries[part]);
      const int any = _mm256_movemask_ps(_mm256_castsi256_ps(escaped));
      if (any) note(static_cast<unsigned>(any), static_cast<uint32_t>(at), escapes);
    }
  }
  for (int part = 0; part < kParts; ++part)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes->state + 8 * part), states[part]);
  lanes->cursor = words.cursor;
  return group;
}

void scale_in_place(void* values, int64_t count, float scale) {
  auto* bytes = static_cast<char*>(values);
  const __m256 factor = _mm256_set1_ps(scale);
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + 4 * i));
    const __m256 product = _mm256_mul_ps(_mm256_cvtepi32_ps(codes), factor);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes + 4 * i), _mm256_castps_si256(product));
  }
  kPortableLanes.scale_in_place(bytes + 4 * i, count - i, scale);
}

}  // namespace

const LaneKernel kAvx2Lanes = {"avx2", decode_groups, scale_in_place};

}  // namespace onnxcomp::codec
