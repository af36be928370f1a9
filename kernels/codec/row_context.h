#pragma once

// The contexts of the profile `rows`, lane by lane: what the portable decoder and the encoder share.

#include <cstdint>

#include "codec/lanes.h"

namespace onnxcomp::codec {

inline constexpr int kMeanShift = 6;    // prediction to level
inline constexpr int kScaleShift = 8;
inline constexpr int kRowShift = 3;     // magnitudes of rows and columns to context
inline constexpr int kColumnShift = 4;
inline constexpr int kRowMemory = 5;
inline constexpr int kLargestContext = 127;

inline int32_t low_half(uint32_t pair) { return static_cast<int16_t>(pair); }
inline int32_t high_half(uint32_t pair) { return static_cast<int16_t>(pair >> 16); }
inline int32_t magnitude_of(int32_t value) { return value < 0 ? -value : value; }
inline int32_t clamped(int32_t value, int32_t low, int32_t high) {
  return value < low ? low : value > high ? high : value;
}

inline const RowPosition& position_of(const RowTable& table, int64_t position) {
  return table.positions[position % table.position_count];
}

// What one lane has before it: the codes, `far`'s code, the row's magnitude.
struct RowContext {
  int32_t before[4];
  int32_t far;
  int32_t row;
};

inline int32_t prediction_of(const RowPosition& at, const RowContext& context) {
  const auto pair = [&](int i) { return static_cast<uint32_t>(at.prediction[i]); };
  return low_half(pair(0)) * context.before[0] + high_half(pair(0)) * context.before[1] +
         low_half(pair(1)) * context.before[2] + high_half(pair(1)) * context.before[3] +
         low_half(pair(2)) * context.far;
}

inline int32_t scale_of(const RowPosition& at, const RowContext& context, int32_t column) {
  const auto pair = [&](int i) { return static_cast<uint32_t>(at.scale[i]); };
  return low_half(pair(0)) * magnitude_of(context.before[0]) +
         high_half(pair(0)) * magnitude_of(context.before[1]) +
         low_half(pair(1)) * magnitude_of(context.before[2]) +
         low_half(pair(2)) * magnitude_of(context.far) +
         high_half(pair(2)) * (context.row >> kRowShift) +
         at.column * (column >> kColumnShift) + at.bias;
}

inline int32_t class_of(const RowTable& table, int32_t prediction, int32_t scale) {
  const int32_t half = table.mean_levels / 2;
  const int32_t mean_level =
      clamped((prediction + (1 << (kMeanShift - 1))) >> kMeanShift, -half, half) + half;
  return clamped(scale >> kScaleShift, 0, table.scale_levels - 1) * table.mean_levels + mean_level;
}

inline RowContext context_of(const RowLanes& rows, const int8_t* far, int lane) {
  const uint32_t latest = rows.latest[lane], earlier = rows.earlier[lane];
  return {{low_half(latest), high_half(latest), low_half(earlier), high_half(earlier)},
          far[lane],
          rows.magnitude[lane]};
}

// The lane's context becomes history.
inline void remember(RowLanes* rows, int lane, int32_t context) {
  uint32_t& latest = rows->latest[lane];
  rows->earlier[lane] = rows->earlier[lane] << 16 | latest >> 16;
  latest = latest << 16 | (static_cast<uint32_t>(context) & 0xffff);
  int32_t& magnitude = rows->magnitude[lane];
  magnitude += magnitude_of(context) - (magnitude >> kRowMemory);
}

}  // namespace onnxcomp::codec
