#include <cstring>

#include "codec/lanes.h"

namespace onnxcomp::codec {
namespace {

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
      const uint32_t word = cursor[0] | static_cast<uint32_t>(cursor[1]) << 8;
      const uint32_t takes = next < kLowestState;  // as arithmetic: a branch would be a coin toss
      lanes->state[lane] = next << (16 * takes) | (word & (0 - takes));
      cursor += 2 * takes;
    }
  }
  lanes->cursor = cursor;
  return group;
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

}  // namespace

const LaneKernel kPortableLanes = {"portable", decode_groups, scale_in_place};

}  // namespace onnxcomp::codec
