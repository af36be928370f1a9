#include <immintrin.h>

#include "codec/lanes.h"

namespace onnxcomp::codec {
namespace {

struct Words {
  const uint8_t* cursor;

  // Lanes below 2^16 take the next words, in the order of lanes.
  __m512i renormalize(__m512i next, __mmask16 active = 0xffff) {
    const __mmask16 low = _mm512_mask_cmplt_epu32_mask(active, next, _mm512_set1_epi32(kLowestState));
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

// Sixteen lanes of a group of rows.
struct RowHalf {
  __m512i state;
  __m512i latest;
  __m512i earlier;
  __m512i magnitude;
};

__m512i clamp(__m512i value, __m512i low, __m512i high) {
  return _mm512_min_epi32(_mm512_max_epi32(value, low), high);
}

// The table's part for the class of every lane, as an index.
__m512i class_slots(const RowTable& table, const RowPosition& at, const RowHalf& half, __m512i far,
                    __m512i bias) {
  __m512i prediction = _mm512_madd_epi16(half.latest, _mm512_set1_epi32(at.prediction[0]));
  prediction = _mm512_add_epi32(
      prediction, _mm512_madd_epi16(half.earlier, _mm512_set1_epi32(at.prediction[1])));
  prediction =
      _mm512_add_epi32(prediction, _mm512_madd_epi16(far, _mm512_set1_epi32(at.prediction[2])));
  // The row's magnitude into the high half: shifted right by 3, left by 16.
  const __m512i row = _mm512_slli_epi32(_mm512_srli_epi32(half.magnitude, 3), 16);
  const __m512i far_and_row = _mm512_or_si512(_mm512_abs_epi32(far), row);
  __m512i scale = _mm512_add_epi32(
      bias, _mm512_madd_epi16(_mm512_abs_epi16(half.latest), _mm512_set1_epi32(at.scale[0])));
  scale = _mm512_add_epi32(
      scale, _mm512_madd_epi16(_mm512_abs_epi16(half.earlier), _mm512_set1_epi32(at.scale[1])));
  scale = _mm512_add_epi32(scale, _mm512_madd_epi16(far_and_row, _mm512_set1_epi32(at.scale[2])));
  const __m512i levels = _mm512_set1_epi32(table.mean_levels / 2);
  const __m512i mean_level = clamp(_mm512_srai_epi32(_mm512_add_epi32(prediction, _mm512_set1_epi32(32)), 6),
                                   _mm512_sub_epi32(_mm512_setzero_si512(), levels), levels);
  const __m512i scale_level = clamp(_mm512_srai_epi32(scale, 8), _mm512_setzero_si512(),
                                    _mm512_set1_epi32(table.scale_levels - 1));
  const __m512i class_of = _mm512_add_epi32(
      _mm512_add_epi32(mean_level, levels),
      _mm512_madd_epi16(scale_level, _mm512_set1_epi32(table.mean_levels)));
  return _mm512_sll_epi32(class_of, _mm_cvtsi32_si128(table.resolution));
}

__m512i contexts_of(const RowTable& table, __m512i entries) {
  const __mmask16 plain = _mm512_cmplt_epu32_mask(entries, _mm512_set1_epi32(static_cast<int>(table.first_escape)));
  const __m512i centered = _mm512_sub_epi32(_mm512_srli_epi32(entries, 24), _mm512_set1_epi32(table.center));
  return _mm512_maskz_mov_epi32(
      plain, clamp(centered, _mm512_set1_epi32(-127), _mm512_set1_epi32(127)));
}

void remember(__m512i context, RowHalf* half) {
  half->earlier = _mm512_or_si512(_mm512_slli_epi32(half->earlier, 16), _mm512_srli_epi32(half->latest, 16));
  half->latest = _mm512_mask_blend_epi16(0x55555555, _mm512_slli_epi32(half->latest, 16), context);
  half->magnitude = _mm512_add_epi32(_mm512_sub_epi32(half->magnitude, _mm512_srli_epi32(half->magnitude, 5)),
                                     _mm512_abs_epi32(context));
}

void decode_rows(LaneStates* lanes, const RowTable& shared_table, const RowGroup& shared_group,
                 RowLanes* rows) {
  // Copies, which stores of bytes cannot change: they stay in registers.
  const RowTable table = shared_table;
  const RowGroup group = shared_group;
  const __m128i resolution = _mm_cvtsi32_si128(table.resolution);
  const __m512i mask = _mm512_set1_epi32((1 << table.resolution) - 1);
  const __m512i twelve_bits = _mm512_set1_epi32(0xfff);
  const uint32_t has_row = static_cast<uint32_t>((uint64_t{1} << group.active) - 1);
  RowHalf halves[2];
  __mmask16 active[2];
  for (int h = 0; h < 2; ++h) {
    halves[h] = {_mm512_loadu_si512(lanes->state + 16 * h), _mm512_loadu_si512(rows->latest + 16 * h),
                 _mm512_loadu_si512(rows->earlier + 16 * h), _mm512_loadu_si512(rows->magnitude + 16 * h)};
    active[h] = static_cast<__mmask16>(has_row >> (16 * h));
  }
  Words words = {lanes->cursor};
  const uint8_t* end = lanes->end;
  int64_t j = rows->position;
  int64_t phase = j % table.position_count;
  for (; j < group.length && end - words.cursor >= 2 * kLanes; ++j) {
    const RowPosition& at = table.positions[phase];
    phase = phase + 1 == table.position_count ? 0 : phase + 1;
    const __m512i bias = _mm512_set1_epi32(at.bias + at.column * (group.columns[j] >> 4));
    __m512i entries[2], next[2];
    for (int h = 0; h < 2; ++h) {
      const auto* far = reinterpret_cast<const __m128i*>(group.contexts + (j - table.far) * kLanes + 16 * h);
      const __m512i slots = class_slots(table, at, halves[h], _mm512_cvtepi8_epi32(_mm_loadu_si128(far)), bias);
      const __m512i index = _mm512_or_si512(slots, _mm512_and_si512(halves[h].state, mask));
      entries[h] = _mm512_i32gather_epi32(index, table.entries, 4);
    }
    for (int h = 0; h < 2; ++h) {
      const __m512i frequency = _mm512_and_si512(_mm512_srli_epi32(entries[h], 12), twelve_bits);
      next[h] = _mm512_add_epi32(
          _mm512_mullo_epi32(frequency, _mm512_srl_epi32(halves[h].state, resolution)),
          _mm512_and_si512(entries[h], twelve_bits));
    }
    for (int h = 0; h < 2; ++h) {
      halves[h].state = _mm512_mask_mov_epi32(halves[h].state, active[h], words.renormalize(next[h], active[h]));
      const __m512i context = contexts_of(table, entries[h]);
      remember(context, &halves[h]);
      const int64_t to = j * kLanes + 16 * h;
      _mm_storeu_si128(reinterpret_cast<__m128i*>(group.symbols + to),
                       _mm512_cvtepi32_epi8(_mm512_srli_epi32(entries[h], 24)));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(group.contexts + to), _mm512_cvtepi32_epi8(context));
    }
  }
  for (int h = 0; h < 2; ++h) {
    _mm512_storeu_si512(lanes->state + 16 * h, halves[h].state);
    _mm512_storeu_si512(rows->latest + 16 * h, halves[h].latest);
    _mm512_storeu_si512(rows->earlier + 16 * h, halves[h].earlier);
    _mm512_storeu_si512(rows->magnitude + 16 * h, halves[h].magnitude);
  }
  lanes->cursor = words.cursor;
  rows->position = j;
}

void classify_rows(const RowTable& shared_table, const RowGroup& shared_group, RowLanes* rows,
                   uint8_t* classes) {
  const RowTable table = shared_table;
  const RowGroup group = shared_group;
  for (int h = 0; h < 2 && 16 * h < group.active; ++h) {
    RowHalf half = {_mm512_setzero_si512(), _mm512_loadu_si512(rows->latest + 16 * h),
                    _mm512_loadu_si512(rows->earlier + 16 * h), _mm512_loadu_si512(rows->magnitude + 16 * h)};
    for (int64_t j = 0; j < group.length; ++j) {
      const RowPosition& at = table.positions[j % table.position_count];
      const int8_t* here = group.contexts + j * kLanes + 16 * h;
      const auto* far = reinterpret_cast<const __m128i*>(here - table.far * kLanes);
      const __m512i bias = _mm512_set1_epi32(at.bias + at.column * (group.columns[j] >> 4));
      const __m512i slots = class_slots(table, at, half, _mm512_cvtepi8_epi32(_mm_loadu_si128(far)), bias);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(classes + j * kLanes + 16 * h), _mm512_cvtepi32_epi8(slots));
      remember(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(here))), &half);
    }
  }
}

void spread_rows(const RowGroup& group, int32_t lowest, int32_t* rows) {
  kAvx2Lanes.spread_rows(group, lowest, rows);
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

int64_t append_bits(const PackedBits& bits, int64_t first, int64_t count, int width, bool rotated,
                    uint32_t* numbers) {
  return kAvx2Lanes.append_bits(bits, first, count, width, rotated, numbers);
}

}  // namespace

const LaneKernel kAvx512Lanes = {"avx512", decode_groups, decode_rows, classify_rows,
                                 spread_rows, scale_in_place, append_bits};

}  // namespace onnxcomp::codec
