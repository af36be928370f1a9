#pragma once

// What an instruction set does for the decoders. No function is defined here and nothing of std is
// used: the per-instruction-set files include it.

#include <cstddef>
#include <cstdint>

namespace onnxcomp::codec {

inline constexpr int kLanes = 32;
inline constexpr uint32_t kLowestState = uint32_t{1} << 16;  // states are in [2^16, 2^32)
inline constexpr uint32_t kNoEscape = ~uint32_t{0};          // above every table entry

// Interleaved decoders that read one sequence of 16-bit words.
struct LaneStates {
  uint32_t state[kLanes];
  const uint8_t* cursor;
  const uint8_t* end;
};

// Positions of escaped codes, ascending. `positions` has room for every code of the call.
struct Escapes {
  uint32_t* positions;
  int64_t count;
};

// A class's part of the table: 2^resolution entries as slot_entries makes them.
struct LaneTable {
  const uint32_t* entries;
  int resolution;
  int32_t lowest;         // the code of symbol 0
  uint32_t first_escape;  // entries from here on escape: kNoEscape or symbol << 24
};

// What the profile `rows` knows at one position of the kernel, as pairs of 16-bit weights, the first in
// the low half. docs/codec.md has the formulas.
struct RowPosition {
  int32_t prediction[3];  // of codes 1 and 2, 3 and 4, `far` before; the last second half is 0
  int32_t scale[3];       // of magnitudes 1 and 2, 3, `far` before and the row's
  int32_t column;         // of the column's magnitude
  int32_t bias;
};

struct RowTable {
  const uint32_t* entries;  // class after class
  int resolution;
  uint32_t first_escape;
  int32_t center;           // contexts are symbols less this
  int32_t mean_levels;      // odd
  int32_t scale_levels;
  const RowPosition* positions;
  int64_t position_count;
  int64_t far;
};

// Rows decoded side by side: lane l has row l of the group. Arrays are [length][kLanes].
struct RowGroup {
  int64_t length;
  int active;              // lanes that have a row
  const int32_t* columns;  // [length], magnitudes in the groups before
  uint8_t* symbols;
  int8_t* contexts;        // `far` steps of zeros lie before it
};

// Where the lanes of a group are: two codes of history a word, the latest in the low half.
struct RowLanes {
  uint32_t latest[kLanes];   // 1 and 2 before
  uint32_t earlier[kLanes];  // 3 and 4 before
  int32_t magnitude[kLanes];
  int64_t position;
};

// Unsigned numbers of `width` bits, number i from bit i * width on; bit 0 of a byte is the lowest.
struct PackedBits {
  const uint8_t* data;
  size_t size;    // bytes
  int width;      // at most 32
  uint32_t base;  // is added to each
};

struct LaneKernel {
  const char* isa;
  // Decodes up to `groups` groups of 32 consecutive codes, lane = code % 32. Stops before a group for
  // which fewer than 32 words are left, and returns how many groups it did.
  int64_t (*decode_groups)(LaneStates* lanes, const LaneTable& table, int64_t groups, int32_t* codes,
                           Escapes* escapes);
  // Decodes symbols and contexts. Goes on from rows->position while 32 words are left.
  void (*decode_rows)(LaneStates* lanes, const RowTable& table, const RowGroup& group, RowLanes* rows);
  // What an encoder needs: the class of every context of the group, classes[length][kLanes].
  void (*classify_rows)(const RowTable& table, const RowGroup& group, RowLanes* rows, uint8_t* classes);
  // rows[l * length + j] = lowest + symbols[j * kLanes + l] for the first `active` lanes.
  void (*spread_rows)(const RowGroup& group, int32_t lowest, int32_t* rows);
  // The 4-byte integers at `values` become float32: scale * integer.
  void (*scale_in_place)(void* values, int64_t count, float scale);
  // numbers[i] moves up by `width` bits, 1 to 32, and takes the low ones of base + number first + i below;
  // then it is rotated right by one bit if `rotated`. `first` is a multiple of 8. Returns how many it
  // did, all or a multiple of 8.
  int64_t (*append_bits)(const PackedBits& bits, int64_t first, int64_t count, int width, bool rotated,
                         uint32_t* numbers);
};

// One step of a group at a time, with every word checked; false when there are too few.
bool decode_rows_checked(LaneStates* lanes, const RowTable& table, const RowGroup& group, RowLanes* rows);

extern const LaneKernel kPortableLanes;
extern const LaneKernel kAvx2Lanes;
extern const LaneKernel kAvx512Lanes;
extern const LaneKernel kNeonLanes;

}  // namespace onnxcomp::codec
