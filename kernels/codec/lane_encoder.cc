#include "codec/lane_encoder.h"

#include <algorithm>

#include "codec/fixed_point.h"
#include "codec/lanes.h"

namespace onnxcomp::codec::rans {
namespace {

// What encoding a symbol takes: state -> (state / f << resolution) + state % f + first slot, with the
// division as a multiplication, exact for states below f << (32 - resolution): with 2^k >= f, the
// multiplier exceeds 2^(32 + k) / f by less than 2^k / f (T. Granlund, P. Montgomery, PLDI 1994).
struct Step {
  uint64_t multiplier;
  uint64_t limit;       // f << (32 - resolution): from here on a word leaves first
  uint32_t complement;  // 2^resolution - f
  uint32_t first_slot;
  int shift;
};

std::vector<Step> steps_of(const FrequencyTable& table) {
  std::vector<Step> steps(table.frequency.size());
  for (int c = 0; c < table.classes(); ++c) {
    uint32_t first_slot = 0;
    for (int s = 0; s < table.symbols; ++s) {
      const uint32_t f = table.of_class(c)[s];
      if (f == 0) continue;
      const int k = f == 1 ? 0 : top_bit(f - 1) + 1;
      steps[static_cast<size_t>(c * table.symbols + s)] = {
          (uint64_t{1} << (32 + k)) / f + 1, static_cast<uint64_t>(f) << (32 - table.resolution),
          (uint32_t{1} << table.resolution) - f, first_slot, 32 + k};
      first_slot += f;
    }
  }
  return steps;
}

}  // namespace

std::vector<uint8_t> encode_lanes(std::vector<uint16_t> symbols, const std::vector<Run>& runs,
                                  const FrequencyTable& table, int lanes) {
  const std::vector<Step> steps = steps_of(table);
  uint32_t states[kLanes];
  std::fill(states, states + kLanes, kLowestState);
  // Backwards, as rANS must: the last word first. A code sheds at most one, which takes the place of codes
  // that are done.
  uint16_t* const buffer = symbols.data();
  auto symbol = static_cast<ptrdiff_t>(symbols.size()), word = symbol - 1;
  for (auto run = runs.rbegin(); run != runs.rend(); ++run) {
    for (int64_t i = 0; i < run->steps; ++i) {
      for (int lane = run->active - 1; lane >= 0; --lane) {
        const Step& step = steps[buffer[--symbol]];
        uint32_t state = states[lane];
        const bool sheds = state >= step.limit;
        buffer[word] = static_cast<uint16_t>(state);
        word -= sheds;
        state >>= sheds ? 16 : 0;
        const auto quotient = static_cast<uint32_t>((state * step.multiplier) >> step.shift);
        states[lane] = state + quotient * step.complement + step.first_slot;
      }
    }
  }
  const size_t first = static_cast<size_t>(word + 1), state_bytes = static_cast<size_t>(lanes) * 4;
  std::vector<uint8_t> bytes(state_bytes + (symbols.size() - first) * 2);
  for (size_t i = 0; i < state_bytes; ++i) bytes[i] = static_cast<uint8_t>(states[i / 4] >> i % 4 * 8);
  uint8_t* out = bytes.data() + state_bytes;
  for (size_t i = first; i < symbols.size(); ++i, out += 2) {
    out[0] = static_cast<uint8_t>(buffer[i]);
    out[1] = static_cast<uint8_t>(buffer[i] >> 8);
  }
  return bytes;
}

}  // namespace onnxcomp::codec::rans
