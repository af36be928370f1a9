#include "codec/rows_avx2.h"

#include "codec/words_avx2.h"

namespace onnxcomp::codec {
namespace {

__m256i clamp(__m256i value, __m256i low, __m256i high) {
  return _mm256_min_epi32(_mm256_max_epi32(value, low), high);
}

// What the class of eight lanes follows from: pairs of codes before, their magnitudes, the row's.
struct RowTaps {
  __m256i latest, earlier, far;
  __m256i latest_magnitudes, earlier_magnitudes;
  __m256i row;
};

// The table's part for the class of every lane, as an index.
template <bool kMeans>
__m256i class_slots(const RowTable& table, const RowPosition& at, const RowTaps& taps, __m256i bias) {
  // The row's magnitude into the high half: shifted right by 3, left by 16.
  const __m256i row = _mm256_slli_epi32(_mm256_srli_epi32(taps.row, 3), 16);
  const __m256i far_and_row = _mm256_or_si256(_mm256_abs_epi32(taps.far), row);
  __m256i scale = _mm256_add_epi32(
      bias, _mm256_madd_epi16(taps.latest_magnitudes, _mm256_set1_epi32(at.scale[0])));
  scale = _mm256_add_epi32(
      scale, _mm256_madd_epi16(taps.earlier_magnitudes, _mm256_set1_epi32(at.scale[1])));
  scale = _mm256_add_epi32(scale, _mm256_madd_epi16(far_and_row, _mm256_set1_epi32(at.scale[2])));
  const __m256i zero = _mm256_setzero_si256();
  __m256i class_of = clamp(_mm256_srai_epi32(scale, 8), zero, _mm256_set1_epi32(table.scale_levels - 1));
  if (kMeans) {
    const int half = table.mean_levels / 2;
    // Rounded, and moved up so that the lowest level is 0.
    __m256i prediction = _mm256_set1_epi32(32 + (half << 6));
    prediction = _mm256_add_epi32(prediction, _mm256_madd_epi16(taps.latest, _mm256_set1_epi32(at.prediction[0])));
    prediction = _mm256_add_epi32(prediction, _mm256_madd_epi16(taps.earlier, _mm256_set1_epi32(at.prediction[1])));
    prediction = _mm256_add_epi32(prediction, _mm256_madd_epi16(taps.far, _mm256_set1_epi32(at.prediction[2])));
    const __m256i level = clamp(_mm256_srai_epi32(prediction, 6), zero, _mm256_set1_epi32(2 * half));
    class_of = _mm256_add_epi32(level, _mm256_madd_epi16(class_of, _mm256_set1_epi32(table.mean_levels)));
  }
  return _mm256_sll_epi32(class_of, _mm_cvtsi32_si128(table.resolution));
}

// Four vectors of eight numbers below 256, as bytes.
__m256i packed_bytes(const __m256i* words) {
  const __m256i front = _mm256_packus_epi32(words[0], words[1]), back = _mm256_packus_epi32(words[2], words[3]);
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  return _mm256_permutevar8x32_epi32(_mm256_packus_epi16(front, back), order);
}

constexpr int kParts = kLanes / 8;
constexpr int kRemembered = 4;  // steps whose pairs of contexts are kept

// Codes 1 and 2 before, as words of two halves, the latest in the low one; and their magnitudes.
struct History {
  __m256i pairs[kRemembered][kParts];
  __m256i magnitudes[kRemembered][kParts];

  // Before step j. `far` steps of zeros, at least five, lie before the first.
  void begin(int64_t j, const int8_t* contexts) {
    for (int64_t step = j - 2; step <= j; ++step) {
      for (int p = 0; p < kParts; ++p) set(step + kRemembered, p, contexts + (step - 1) * kLanes);
    }
  }

  // Of part p before step j.
  RowTaps taps(int64_t j, int p, __m256i far, __m256i row) const {
    const int64_t now = j % kRemembered, before = (j + 2) % kRemembered;
    return {pairs[now][p], pairs[before][p], far, magnitudes[now][p], magnitudes[before][p], row};
  }

  // Step j is done, with these contexts of all parts: the row's magnitude behind it.
  __m256i next(int64_t j, int p, const int8_t* contexts, __m256i row) {
    set(j + 1, p, contexts);
    const __m256i latest = _mm256_and_si256(magnitudes[(j + 1) % kRemembered][p], _mm256_set1_epi32(0xffff));
    return _mm256_add_epi32(_mm256_sub_epi32(row, _mm256_srli_epi32(row, 5)), latest);
  }

  void set(int64_t j, int p, const int8_t* contexts) {
    const auto* one = reinterpret_cast<const __m128i*>(contexts + 8 * p);
    const auto* two = reinterpret_cast<const __m128i*>(contexts - kLanes + 8 * p);
    const __m256i pair = _mm256_cvtepi8_epi16(_mm_unpacklo_epi8(_mm_loadl_epi64(one), _mm_loadl_epi64(two)));
    pairs[j % kRemembered][p] = pair;
    magnitudes[j % kRemembered][p] = _mm256_abs_epi16(pair);
  }
};

// Symbols to contexts, all lanes at once, as bytes.
struct Contexts {
  __m256i center, escape, escapes;

  explicit Contexts(const RowTable& table)
      : center(_mm256_set1_epi8(static_cast<char>(table.center - 128))),
        escape(_mm256_set1_epi8(static_cast<char>(table.first_escape >> 24))),
        escapes(_mm256_set1_epi8(table.first_escape == kNoEscape ? 0 : -1)) {}

  __m256i of(__m256i symbols) const {
    const __m256i centered = _mm256_subs_epi8(_mm256_xor_si256(symbols, _mm256_set1_epi8(-128)), center);
    const __m256i escaped = _mm256_and_si256(_mm256_cmpeq_epi8(symbols, escape), escapes);
    return _mm256_andnot_si256(escaped, _mm256_max_epi8(centered, _mm256_set1_epi8(-127)));
  }
};

// With kMeans classes have several levels of mean; with kAll every lane has a row.
template <bool kMeans, bool kAll>
void decode_rows_as(LaneStates* lanes, const RowTable& shared_table, const RowGroup& shared_group, RowLanes* rows) {
  // Copies, which stores of bytes cannot change: they stay in registers.
  const RowTable table = shared_table;
  const RowGroup group = shared_group;
  const __m128i resolution = _mm_cvtsi32_si128(table.resolution);
  const __m256i mask = _mm256_set1_epi32((1 << table.resolution) - 1);
  const __m256i twelve_bits = _mm256_set1_epi32(0xfff);
  const __m256i lane_numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const int* entries_of = reinterpret_cast<const int*>(table.entries);
  const Contexts contexts(table);
  __m256i states[kParts], sums[kParts], active[kParts];
  for (int p = 0; p < kParts; ++p) {
    states[p] = load(lanes->state + 8 * p);
    sums[p] = load(rows->magnitude + 8 * p);
    active[p] = _mm256_cmpgt_epi32(_mm256_set1_epi32(group.active - 8 * p), lane_numbers);
  }
  Words words = {lanes->cursor};
  const uint8_t* end = lanes->end;
  int64_t j = rows->position;
  int64_t phase = j % table.position_count;
  History history;
  history.begin(j, group.contexts);
  for (; j < group.length && end - words.cursor >= 2 * kLanes; ++j) {
    const RowPosition& at = table.positions[phase];
    phase = phase + 1 == table.position_count ? 0 : phase + 1;
    const __m256i bias = _mm256_set1_epi32(at.bias + at.column * (group.columns[j] >> 4));
    __m256i entries[kParts], symbols[kParts];
    for (int p = 0; p < kParts; ++p) {
      const auto* bytes = reinterpret_cast<const __m128i*>(group.contexts + (j - table.far) * kLanes + 8 * p);
      const RowTaps taps = history.taps(j, p, _mm256_cvtepi8_epi32(_mm_loadl_epi64(bytes)), sums[p]);
      const __m256i index = _mm256_or_si256(class_slots<kMeans>(table, at, taps, bias), _mm256_and_si256(states[p], mask));
      entries[p] = _mm256_i32gather_epi32(entries_of, index, 4);
    }
    for (int p = 0; p < kParts; ++p) symbols[p] = _mm256_srli_epi32(entries[p], 24);
    const __m256i packed = packed_bytes(symbols);
    store(group.symbols + j * kLanes, packed);
    int8_t* const found = group.contexts + j * kLanes;
    store(found, contexts.of(packed));
    for (int p = 0; p < kParts; ++p) {
      const __m256i frequency = _mm256_and_si256(_mm256_srli_epi32(entries[p], 12), twelve_bits);
      const __m256i next = _mm256_add_epi32(_mm256_mullo_epi32(frequency, _mm256_srl_epi32(states[p], resolution)),
                                            _mm256_and_si256(entries[p], twelve_bits));
      states[p] = kAll ? words.renormalize(next)
                       : _mm256_blendv_epi8(states[p], words.renormalize(next, active[p]), active[p]);
      sums[p] = history.next(j, p, found, sums[p]);
    }
  }
  for (int p = 0; p < kParts; ++p) {
    store(lanes->state + 8 * p, states[p]);
    store(rows->latest + 8 * p, history.pairs[j % kRemembered][p]);
    store(rows->earlier + 8 * p, history.pairs[(j + 2) % kRemembered][p]);
    store(rows->magnitude + 8 * p, sums[p]);
  }
  lanes->cursor = words.cursor;
  rows->position = j;
}

template <bool kMeans>
void classify_rows_as(const RowTable& shared_table, const RowGroup& shared_group, RowLanes* rows, uint8_t* classes) {
  const RowTable table = shared_table;
  const RowGroup group = shared_group;
  __m256i sums[kParts];
  for (int p = 0; p < kParts; ++p) sums[p] = load(rows->magnitude + 8 * p);
  History history;
  history.begin(0, group.contexts);
  for (int64_t j = 0; j < group.length; ++j) {
    const RowPosition& at = table.positions[j % table.position_count];
    const __m256i bias = _mm256_set1_epi32(at.bias + at.column * (group.columns[j] >> 4));
    const int8_t* here = group.contexts + j * kLanes;
    __m256i slots[kParts];
    for (int p = 0; p < kParts; ++p) {
      const auto* far = reinterpret_cast<const __m128i*>(here - table.far * kLanes + 8 * p);
      slots[p] = class_slots<kMeans>(table, at, history.taps(j, p, _mm256_cvtepi8_epi32(_mm_loadl_epi64(far)), sums[p]), bias);
      sums[p] = history.next(j, p, here, sums[p]);
    }
    store(classes + j * kLanes, packed_bytes(slots));
  }
}

}  // namespace

void decode_rows_avx2(LaneStates* lanes, const RowTable& table, const RowGroup& group, RowLanes* rows) {
  const bool means = table.mean_levels > 1;
  if (group.active < kLanes)
    (means ? decode_rows_as<true, false> : decode_rows_as<false, false>)(lanes, table, group, rows);
  else
    (means ? decode_rows_as<true, true> : decode_rows_as<false, true>)(lanes, table, group, rows);
}

void classify_rows_avx2(const RowTable& table, const RowGroup& group, RowLanes* rows, uint8_t* classes) {
  (table.mean_levels > 1 ? classify_rows_as<true> : classify_rows_as<false>)(table, group, rows, classes);
}

// Sixteen lanes of sixteen steps at a time.
void spread_rows_avx2(const RowGroup& group, int32_t lowest, int32_t* rows) {
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

}  // namespace onnxcomp::codec
