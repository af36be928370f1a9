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
  __m256i renormalize(__m256i next, __m256i active) {
    const __m256i low = _mm256_and_si256(
        active, _mm256_cmpeq_epi32(_mm256_srli_epi32(next, 16), _mm256_setzero_si256()));
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
  const __m256i all = _mm256_set1_epi32(-1);
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
    for (int part = 0; part < kParts; ++part) states[part] = words.renormalize(next[part], all);
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

__m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }
void store(void* to, __m256i value) { _mm256_storeu_si256(static_cast<__m256i*>(to), value); }

// Eight lanes of a group of rows.
struct RowPart {
  __m256i state;
  __m256i latest;
  __m256i earlier;
  __m256i magnitude;
};

__m256i clamp(__m256i value, __m256i low, __m256i high) {
  return _mm256_min_epi32(_mm256_max_epi32(value, low), high);
}

// The table's part for the class of every lane, as an index.
__m256i class_slots(const RowTable& table, const RowPosition& at, const RowPart& part, __m256i far,
                    __m256i bias) {
  __m256i prediction = _mm256_madd_epi16(part.latest, _mm256_set1_epi32(at.prediction[0]));
  prediction = _mm256_add_epi32(
      prediction, _mm256_madd_epi16(part.earlier, _mm256_set1_epi32(at.prediction[1])));
  prediction =
      _mm256_add_epi32(prediction, _mm256_madd_epi16(far, _mm256_set1_epi32(at.prediction[2])));
  // The row's magnitude into the high half: shifted right by 3, left by 16.
  const __m256i row = _mm256_slli_epi32(_mm256_srli_epi32(part.magnitude, 3), 16);
  const __m256i far_and_row = _mm256_or_si256(_mm256_abs_epi32(far), row);
  __m256i scale = _mm256_add_epi32(
      bias, _mm256_madd_epi16(_mm256_abs_epi16(part.latest), _mm256_set1_epi32(at.scale[0])));
  scale = _mm256_add_epi32(
      scale, _mm256_madd_epi16(_mm256_abs_epi16(part.earlier), _mm256_set1_epi32(at.scale[1])));
  scale = _mm256_add_epi32(scale, _mm256_madd_epi16(far_and_row, _mm256_set1_epi32(at.scale[2])));
  const __m256i levels = _mm256_set1_epi32(table.mean_levels / 2);
  const __m256i mean_level = clamp(_mm256_srai_epi32(_mm256_add_epi32(prediction, _mm256_set1_epi32(32)), 6),
                                   _mm256_sub_epi32(_mm256_setzero_si256(), levels), levels);
  const __m256i scale_level = clamp(_mm256_srai_epi32(scale, 8), _mm256_setzero_si256(),
                                    _mm256_set1_epi32(table.scale_levels - 1));
  const __m256i class_of = _mm256_add_epi32(
      _mm256_add_epi32(mean_level, levels),
      _mm256_madd_epi16(scale_level, _mm256_set1_epi32(table.mean_levels)));
  return _mm256_sll_epi32(class_of, _mm_cvtsi32_si128(table.resolution));
}

__m256i contexts_of(const RowTable& table, __m256i entries) {
  const __m256i first_escape = _mm256_set1_epi32(static_cast<int>(table.first_escape));
  const __m256i escaped = _mm256_cmpeq_epi32(_mm256_max_epu32(entries, first_escape), entries);
  const __m256i centered = _mm256_sub_epi32(_mm256_srli_epi32(entries, 24), _mm256_set1_epi32(table.center));
  return _mm256_andnot_si256(
      escaped, clamp(centered, _mm256_set1_epi32(-127), _mm256_set1_epi32(127)));
}

void remember(__m256i context, RowPart* part) {
  part->earlier = _mm256_or_si256(_mm256_slli_epi32(part->earlier, 16), _mm256_srli_epi32(part->latest, 16));
  part->latest = _mm256_blend_epi16(_mm256_slli_epi32(part->latest, 16), context, 0x55);
  part->magnitude = _mm256_add_epi32(_mm256_sub_epi32(part->magnitude, _mm256_srli_epi32(part->magnitude, 5)),
                                     _mm256_abs_epi32(context));
}

// The low byte of each of four vectors of eight.
void store_bytes(const __m256i* words, void* to) {
  const __m256i low = _mm256_set1_epi32(0xff);
  const __m256i front = _mm256_packus_epi32(_mm256_and_si256(words[0], low), _mm256_and_si256(words[1], low));
  const __m256i back = _mm256_packus_epi32(_mm256_and_si256(words[2], low), _mm256_and_si256(words[3], low));
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  store(to, _mm256_permutevar8x32_epi32(_mm256_packus_epi16(front, back), order));
}

void decode_rows(LaneStates* lanes, const RowTable& shared_table, const RowGroup& shared_group,
                 RowLanes* rows) {
  // Copies, which stores of bytes cannot change: they stay in registers.
  const RowTable table = shared_table;
  const RowGroup group = shared_group;
  constexpr int kParts = kLanes / 8;
  const __m128i resolution = _mm_cvtsi32_si128(table.resolution);
  const __m256i mask = _mm256_set1_epi32((1 << table.resolution) - 1);
  const __m256i twelve_bits = _mm256_set1_epi32(0xfff);
  const __m256i lane_numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const int* entries_of = reinterpret_cast<const int*>(table.entries);
  RowPart parts[kParts];
  __m256i active[kParts];
  for (int p = 0; p < kParts; ++p) {
    parts[p] = {load(lanes->state + 8 * p), load(rows->latest + 8 * p), load(rows->earlier + 8 * p),
                load(rows->magnitude + 8 * p)};
    active[p] = _mm256_cmpgt_epi32(_mm256_set1_epi32(group.active - 8 * p), lane_numbers);
  }
  Words words = {lanes->cursor};
  const uint8_t* end = lanes->end;
  int64_t j = rows->position;
  int64_t phase = j % table.position_count;
  for (; j < group.length && end - words.cursor >= 2 * kLanes; ++j) {
    const RowPosition& at = table.positions[phase];
    phase = phase + 1 == table.position_count ? 0 : phase + 1;
    const __m256i bias = _mm256_set1_epi32(at.bias + at.column * (group.columns[j] >> 4));
    __m256i entries[kParts], next[kParts], symbols[kParts], contexts[kParts];
    for (int p = 0; p < kParts; ++p) {
      const auto* far = reinterpret_cast<const __m128i*>(group.contexts + (j - table.far) * kLanes + 8 * p);
      const __m256i slots = class_slots(table, at, parts[p], _mm256_cvtepi8_epi32(_mm_loadl_epi64(far)), bias);
      const __m256i index = _mm256_or_si256(slots, _mm256_and_si256(parts[p].state, mask));
      entries[p] = _mm256_i32gather_epi32(entries_of, index, 4);
    }
    for (int p = 0; p < kParts; ++p) {
      const __m256i frequency = _mm256_and_si256(_mm256_srli_epi32(entries[p], 12), twelve_bits);
      next[p] = _mm256_add_epi32(
          _mm256_mullo_epi32(frequency, _mm256_srl_epi32(parts[p].state, resolution)),
          _mm256_and_si256(entries[p], twelve_bits));
    }
    for (int p = 0; p < kParts; ++p) {
      parts[p].state = _mm256_blendv_epi8(parts[p].state, words.renormalize(next[p], active[p]), active[p]);
      contexts[p] = contexts_of(table, entries[p]);
      remember(contexts[p], &parts[p]);
      symbols[p] = _mm256_srli_epi32(entries[p], 24);
    }
    store_bytes(symbols, group.symbols + j * kLanes);
    store_bytes(contexts, group.contexts + j * kLanes);
  }
  for (int p = 0; p < kParts; ++p) {
    store(lanes->state + 8 * p, parts[p].state);
    store(rows->latest + 8 * p, parts[p].latest);
    store(rows->earlier + 8 * p, parts[p].earlier);
    store(rows->magnitude + 8 * p, parts[p].magnitude);
  }
  lanes->cursor = words.cursor;
  rows->position = j;
}

void classify_rows(const RowTable& shared_table, const RowGroup& shared_group, RowLanes* rows,
                   uint8_t* classes) {
  const RowTable table = shared_table;
  const RowGroup group = shared_group;
  constexpr int kParts = kLanes / 8;
  RowPart parts[kParts];
  for (int p = 0; p < kParts; ++p) {
    parts[p] = {_mm256_setzero_si256(), load(rows->latest + 8 * p), load(rows->earlier + 8 * p),
                load(rows->magnitude + 8 * p)};
  }
  for (int64_t j = 0; j < group.length; ++j) {
    const RowPosition& at = table.positions[j % table.position_count];
    const __m256i bias = _mm256_set1_epi32(at.bias + at.column * (group.columns[j] >> 4));
    __m256i slots[kParts];
    for (int p = 0; p < kParts; ++p) {
      const int8_t* here = group.contexts + j * kLanes + 8 * p;
      const auto* far = reinterpret_cast<const __m128i*>(here - table.far * kLanes);
      slots[p] = class_slots(table, at, parts[p], _mm256_cvtepi8_epi32(_mm_loadl_epi64(far)), bias);
      remember(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(here))), &parts[p]);
    }
    store_bytes(slots, classes + j * kLanes);
  }
}

// Sixteen lanes of sixteen steps at a time.
void spread_rows(const RowGroup& group, int32_t lowest, int32_t* rows) {
  const __m256i base = _mm256_set1_epi32(lowest);
  for (int first = 0; first < group.active; first += 16) {
    const int lanes = group.active - first < 16 ? group.active - first : 16;
    const uint8_t* symbols = group.symbols + first;
    int64_t j = 0;
    for (; j + 16 <= group.length; j += 16) {
      // Bytes [step][lane] to [lane][step], by four rounds of interleaving.
      __m128i from[16], to[16];
      for (int s = 0; s < 16; ++s)
        from[s] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(symbols + (j + s) * kLanes));
      for (int round = 0; round < 4; ++round) {
        for (int s = 0; s < 8; ++s) {
          to[2 * s] = _mm_unpacklo_epi8(from[s], from[s + 8]);
          to[2 * s + 1] = _mm_unpackhi_epi8(from[s], from[s + 8]);
        }
        for (int s = 0; s < 16; ++s) from[s] = to[s];
      }
      for (int lane = 0; lane < lanes; ++lane) {
        int32_t* row = rows + (first + lane) * group.length + j;
        store(row, _mm256_add_epi32(_mm256_cvtepu8_epi32(from[lane]), base));
        store(row + 8, _mm256_add_epi32(_mm256_cvtepu8_epi32(_mm_srli_si128(from[lane], 8)), base));
      }
    }
    for (; j < group.length; ++j) {
      for (int lane = 0; lane < lanes; ++lane)
        rows[(first + lane) * group.length + j] =
            static_cast<int32_t>(static_cast<uint32_t>(lowest) + symbols[j * kLanes + lane]);
    }
  }
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

const LaneKernel kAvx2Lanes = {"avx2", decode_groups, decode_rows, classify_rows,
                               spread_rows, scale_in_place, append_bits};

}  // namespace onnxcomp::codec
