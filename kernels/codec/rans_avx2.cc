#include <immintrin.h>

#include "codec/rows_avx2.h"
#include "codec/words_avx2.h"

namespace onnxcomp::codec {
namespace {

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

// Eight numbers at once, from a byte on: each in the four bytes that hold it, shifted down.
int64_t append_bits(const PackedBits& bits, int64_t first, int64_t count, int width, bool rotated,
                    uint32_t* numbers) {
  if (bits.width < 1 || bits.width > 25) return kPortableLanes.append_bits(bits, first, count, width, rotated, numbers);
  const int half = 4 * bits.width;  // where the last four begin
  alignas(32) int8_t bytes[32];
  alignas(32) int32_t shifts[8];
  for (int lane = 0; lane < 8; ++lane) {
    const int bit = lane < 4 ? lane * bits.width : half % 8 + (lane - 4) * bits.width;
    for (int byte = 0; byte < 4; ++byte) bytes[4 * lane + byte] = static_cast<int8_t>(bit / 8 + byte);
    shifts[lane] = bit % 8;
  }
  const __m256i order = load(bytes), down = load(shifts);
  const __m256i base = _mm256_set1_epi32(static_cast<int>(bits.base));
  const __m256i mask = _mm256_set1_epi32((1 << bits.width) - 1);
  const __m256i field_mask = _mm256_srl_epi32(_mm256_set1_epi32(-1), _mm_cvtsi32_si128(32 - width));
  const __m128i up = _mm_cvtsi32_si128(width);
  const uint8_t* from = bits.data + first / 8 * bits.width;
  const uint8_t* const end = bits.data + bits.size;
  int64_t done = 0;
  for (; done + 8 <= count && end - from >= half / 8 + 16; done += 8, from += bits.width) {
    const __m128i low = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    const __m128i high = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + half / 8));
    const __m256i both = _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
    const __m256i number = _mm256_and_si256(_mm256_srlv_epi32(_mm256_shuffle_epi8(both, order), down), mask);
    __m256i whole = _mm256_and_si256(_mm256_add_epi32(number, base), field_mask);
    if (width < 32) whole = _mm256_or_si256(whole, _mm256_sll_epi32(load(numbers + done), up));
    if (rotated) whole = _mm256_or_si256(_mm256_srli_epi32(whole, 1), _mm256_slli_epi32(whole, 31));
    store(numbers + done, whole);
  }
  return done;
}

}  // namespace

const LaneKernel kAvx2Lanes = {"avx2", decode_groups, decode_rows_avx2, classify_rows_avx2,
                               spread_rows_avx2, scale_in_place, append_bits};

}  // namespace onnxcomp::codec
