#include <arm_neon.h>

#include "codec/lanes.h"

namespace onnxcomp::codec {
namespace {

// For every set of four lanes that take a word: the bytes of the next words that each lane takes.
// 255 gives a zero byte.
struct Spread {
  uint8_t rows[16][16];
  uint8_t bytes[16];

  constexpr Spread() : rows(), bytes() {
    for (int taking = 0; taking < 16; ++taking) {
      uint8_t next = 0;
      for (int lane = 0; lane < 4; ++lane) {
        const bool takes = taking >> lane & 1;
        rows[taking][4 * lane] = takes ? next : 255;
        rows[taking][4 * lane + 1] = takes ? static_cast<uint8_t>(next + 1) : 255;
        rows[taking][4 * lane + 2] = 255;
        rows[taking][4 * lane + 3] = 255;
        if (takes) next = static_cast<uint8_t>(next + 2);
      }
      bytes[taking] = next;
    }
  }
};

constexpr Spread kSpread;

struct Words {
  const uint8_t* cursor;

  // Lanes below 2^16 take the next words, in the order of lanes.
  uint32x4_t renormalize(uint32x4_t next) {
    const uint32x4_t low = vcltq_u32(next, vdupq_n_u32(kLowestState));
    const uint32_t bit_of_lane[4] = {1, 2, 4, 8};
    const uint32_t taking = vaddvq_u32(vandq_u32(low, vld1q_u32(bit_of_lane)));
    const uint8x16_t words = vcombine_u8(vld1_u8(cursor), vdup_n_u8(0));
    const uint32x4_t spread =
        vreinterpretq_u32_u8(vqtbl1q_u8(words, vld1q_u8(kSpread.rows[taking])));
    cursor += kSpread.bytes[taking];
    return vbslq_u32(low, vorrq_u32(vshlq_n_u32(next, 16), spread), next);
  }
};

uint32x4_t gather(const uint32_t* entries, uint32x4_t slots) {
  uint32_t four[4] = {entries[vgetq_lane_u32(slots, 0)], entries[vgetq_lane_u32(slots, 1)],
                      entries[vgetq_lane_u32(slots, 2)], entries[vgetq_lane_u32(slots, 3)]};
  return vld1q_u32(four);
}

int64_t decode_groups(LaneStates* lanes, const LaneTable& table, int64_t groups, int32_t* codes,
                      Escapes* escapes) {
  constexpr int kParts = kLanes / 4;
  const uint32x4_t mask = vdupq_n_u32((uint32_t{1} << table.resolution) - 1);
  const int32x4_t down = vdupq_n_s32(-table.resolution);
  const uint32x4_t twelve_bits = vdupq_n_u32(0xfff);
  const int32x4_t lowest = vdupq_n_s32(table.lowest);
  const uint32x4_t first_escape = vdupq_n_u32(table.first_escape);
  uint32x4_t states[kParts];
  for (int part = 0; part < kParts; ++part) states[part] = vld1q_u32(lanes->state + 4 * part);
  Words words = {lanes->cursor};
  int64_t group = 0;
  for (; group < groups && lanes->end - words.cursor >= 2 * kLanes; ++group) {
    for (int part = 0; part < kParts; ++part) {
      const uint32x4_t entries = gather(table.entries, vandq_u32(states[part], mask));
      const uint32x4_t frequency = vandq_u32(vshrq_n_u32(entries, 12), twelve_bits);
      const uint32x4_t bias = vandq_u32(entries, twelve_bits);
      states[part] = words.renormalize(vmlaq_u32(bias, frequency, vshlq_u32(states[part], down)));
      const int64_t at = group * kLanes + 4 * part;
      const int32x4_t symbols = vreinterpretq_s32_u32(vshrq_n_u32(entries, 24));
      vst1q_s32(codes + at, vaddq_s32(symbols, lowest));
      const uint32x4_t escaped = vcgeq_u32(entries, first_escape);
      if (vmaxvq_u32(escaped) == 0) continue;
      uint32_t lane_escaped[4];
      vst1q_u32(lane_escaped, escaped);
      for (int lane = 0; lane < 4; ++lane) {
        if (lane_escaped[lane]) escapes->positions[escapes->count++] = static_cast<uint32_t>(at + lane);
      }
    }
  }
  for (int part = 0; part < kParts; ++part) vst1q_u32(lanes->state + 4 * part, states[part]);
  lanes->cursor = words.cursor;
  return group;
}

void scale_in_place(void* values, int64_t count, float scale) {
  auto* bytes = static_cast<uint8_t*>(values);
  int64_t i = 0;
  for (; i + 4 <= count; i += 4) {
    const int32x4_t codes = vreinterpretq_s32_u8(vld1q_u8(bytes + 4 * i));
    const float32x4_t product = vmulq_n_f32(vcvtq_f32_s32(codes), scale);
    vst1q_u8(bytes + 4 * i, vreinterpretq_u8_f32(product));
  }
  kPortableLanes.scale_in_place(bytes + 4 * i, count - i, scale);
}

// Without a gather, rows gain nothing here over the portable loop.
void decode_rows(LaneStates* lanes, const RowTable& table, const RowGroup& group, RowLanes* rows) {
  kPortableLanes.decode_rows(lanes, table, group, rows);
}

void classify_rows(const RowTable& table, const RowGroup& group, RowLanes* rows, uint8_t* classes) {
  kPortableLanes.classify_rows(table, group, rows, classes);
}

void spread_rows(const RowGroup& group, int32_t lowest, int32_t* rows) {
  kPortableLanes.spread_rows(group, lowest, rows);
}

int64_t append_bits(const PackedBits& bits, int64_t first, int64_t count, int width, bool rotated,
                    uint32_t* numbers) {
  return kPortableLanes.append_bits(bits, first, count, width, rotated, numbers);
}

}  // namespace

const LaneKernel kNeonLanes = {"neon", decode_groups, decode_rows, classify_rows,
                               spread_rows, scale_in_place, append_bits};

}  // namespace onnxcomp::codec
