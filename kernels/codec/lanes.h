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

struct LaneKernel {
  const char* isa;
  // Decodes up to `groups` groups of 32 consecutive codes, lane = code % 32. Stops before a group for
  // which fewer than 32 words are left, and returns how many groups it did.
  int64_t (*decode_groups)(LaneStates* lanes, const LaneTable& table, int64_t groups, int32_t* codes,
                           Escapes* escapes);
  // The 4-byte integers at `values` become float32: scale * integer.
  void (*scale_in_place)(void* values, int64_t count, float scale);
};

extern const LaneKernel kPortableLanes;
extern const LaneKernel kAvx2Lanes;
extern const LaneKernel kAvx512Lanes;
extern const LaneKernel kNeonLanes;

}  // namespace onnxcomp::codec
