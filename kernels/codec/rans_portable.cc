#include <cstring>

#include "codec/lanes.h"
#include "codec/row_context.h"

namespace onnxcomp::codec {
namespace {

uint32_t next_word(const uint8_t* cursor) { return cursor[0] | static_cast<uint32_t>(cursor[1]) << 8; }

// One group, in chunks of lanes that a compiler keeps apart: loads of entries, then arithmetic.
int64_t decode_groups(LaneStates* lanes, const LaneTable& table, int64_t groups, int32_t* codes,
                      Escapes* escapes) {
  const uint32_t mask = (uint32_t{1} << table.resolution) - 1;
  const uint8_t* cursor = lanes->cursor;
  int64_t group = 0;
  for (; group < groups && lanes->end - cursor >= 2 * kLanes; ++group) {
    int32_t* out = codes + group * kLanes;
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint32_t state = lanes->state[lane];
      const uint32_t entry = table.entries[state & mask];
      out[lane] = static_cast<int32_t>(static_cast<uint32_t>(table.lowest) + (entry >> 24));
      if (entry >= table.first_escape)
        escapes->positions[escapes->count++] = static_cast<uint32_t>(group * kLanes + lane);
      const uint32_t next = (entry >> 12 & 0xfff) * (state >> table.resolution) + (entry & 0xfff);
      const uint32_t word = next_word(cursor);
      const uint32_t takes = next < kLowestState;  // as arithmetic: a branch would be a coin toss
      lanes->state[lane] = next << (16 * takes) | (word & (0 - takes));
      cursor += 2 * takes;
    }
  }
  lanes->cursor = cursor;
  return group;
}

// The classes of all lanes, in loops without branches that a compiler makes vectors of. Lanes without a
// row get some class.
void classes_at(const RowTable& table, const RowGroup& group, const RowLanes& rows, int64_t j, int32_t* classes) {
  const RowTable constants = table;
  const RowPosition at = position_of(constants, j);
  const int32_t column = group.columns[j];
  const int8_t* far = group.contexts + (j - constants.far) * kLanes;
  for (int lane = 0; lane < kLanes; ++lane) {
    const RowContext context = context_of(rows, far, lane);
    classes[lane] = class_of(constants, prediction_of(at, context), scale_of(at, context, column));
  }
}

// Contexts become history, of all lanes.
void remember_all(const int32_t* values, RowLanes* rows, int8_t* contexts) {
  for (int lane = 0; lane < kLanes; ++lane) remember(rows, lane, values[lane]);
  for (int lane = 0; lane < kLanes; ++lane) contexts[lane] = static_cast<int8_t>(values[lane]);
}

// One code of every active lane. Unchecked, 32 words are left.
template <bool kChecked>
bool decode_step(LaneStates* lanes, const RowTable& table, const RowGroup& group, RowLanes* rows) {
  const int64_t j = rows->position;
  const uint32_t mask = (uint32_t{1} << table.resolution) - 1;
  int32_t classes[kLanes], values[kLanes] = {};
  classes_at(table, group, *rows, j, classes);
  const uint8_t* cursor = lanes->cursor;
  for (int lane = 0; lane < group.active; ++lane) {
    const uint32_t state = lanes->state[lane];
    const uint32_t slots = static_cast<uint32_t>(classes[lane]) << table.resolution;
    const uint32_t entry = table.entries[slots | (state & mask)];
    const uint32_t next = (entry >> 12 & 0xfff) * (state >> table.resolution) + (entry & 0xfff);
    const uint32_t takes = next < kLowestState;
    if (kChecked && takes && lanes->end - cursor < 2) return false;
    const uint32_t word = !kChecked || takes ? next_word(cursor) : 0;
    lanes->state[lane] = next << (16 * takes) | (word & (0 - takes));
    cursor += 2 * takes;
    const auto symbol = static_cast<int32_t>(entry >> 24);
    group.symbols[j * kLanes + lane] = static_cast<uint8_t>(symbol);
    const int32_t value = clamped(symbol - table.center, -kLargestContext, kLargestContext);
    values[lane] = entry >= table.first_escape ? 0 : value;
  }
  lanes->cursor = cursor;
  remember_all(values, rows, group.contexts + j * kLanes);
  ++rows->position;
  return true;
}

void decode_rows(LaneStates* lanes, const RowTable& table, const RowGroup& group, RowLanes* rows) {
  while (rows->position < group.length && lanes->end - lanes->cursor >= 2 * kLanes)
    decode_step<false>(lanes, table, group, rows);
}

void classify_rows(const RowTable& table, const RowGroup& group, RowLanes* rows, uint8_t* classes) {
  for (int64_t j = 0; j < group.length; ++j) {
    int32_t found[kLanes], values[kLanes];
    int8_t* contexts = group.contexts + j * kLanes;
    classes_at(table, group, *rows, j, found);
    for (int lane = 0; lane < kLanes; ++lane) {
      classes[j * kLanes + lane] = static_cast<uint8_t>(found[lane]);
      values[lane] = contexts[lane];
    }
    remember_all(values, rows, contexts);
  }
}

void spread_rows(const RowGroup& group, int32_t lowest, int32_t* rows) {
  for (int lane = 0; lane < group.active; ++lane) {
    int32_t* row = rows + lane * group.length;
    const uint8_t* symbols = group.symbols + lane;
    for (int64_t j = 0; j < group.length; ++j)
      row[j] = static_cast<int32_t>(static_cast<uint32_t>(lowest) + symbols[j * kLanes]);
  }
}

void scale_in_place(void* values, int64_t count, float scale) {
  auto* bytes = static_cast<unsigned char*>(values);
  for (int64_t i = 0; i < count; ++i) {
    int32_t code;
    std::memcpy(&code, bytes + 4 * i, 4);
    const float value = scale * static_cast<float>(code);
    std::memcpy(bytes + 4 * i, &value, 4);
  }
}

uint64_t load_little(const uint8_t* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof word);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
  word = __builtin_bswap64(word);
#endif
  return word;
}

// Eight numbers at once, which start at a byte; one has at most 39 bits with those before it.
int64_t append_bits(const PackedBits& bits, int64_t first, int64_t count, int width, bool rotated,
                    uint32_t* numbers) {
  const auto step = static_cast<size_t>(bits.width);
  const uint64_t mask = (uint64_t{1} << bits.width) - 1, field_mask = (uint64_t{1} << width) - 1;
  size_t at = static_cast<size_t>(first / 8) * step;
  int64_t done = 0;
  for (; done + 8 <= count && at + step + 8 <= bits.size; done += 8, at += step) {
    for (size_t j = 0; j < 8; ++j) {
      uint32_t* number = numbers + done + static_cast<int64_t>(j);
      const uint64_t word = load_little(bits.data + at + j * step / 8);
      const uint32_t field = bits.base + static_cast<uint32_t>(word >> (j * step % 8) & mask);
      const uint64_t before = width == 32 ? 0 : uint64_t{*number} << width;
      const auto whole = static_cast<uint32_t>(before | (field & field_mask));
      *number = rotated ? whole >> 1 | whole << 31 : whole;
    }
  }
  return done;
}

}  // namespace

bool decode_rows_checked(LaneStates* lanes, const RowTable& table, const RowGroup& group, RowLanes* rows) {
  while (rows->position < group.length) {
    if (!decode_step<true>(lanes, table, group, rows)) return false;
  }
  return true;
}

const LaneKernel kPortableLanes = {"portable", decode_groups, decode_rows, classify_rows,
                                   spread_rows, scale_in_place, append_bits};

}  // namespace onnxcomp::codec
