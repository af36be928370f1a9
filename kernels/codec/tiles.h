#pragma once

#include <vector>

#include "codec/alphabet.h"

namespace onnxcomp::codec::rans {

// The profile `tiles`: 2^length_log2 consecutive codes have one class.
struct Tiles {
  int length_log2 = 5;
  int classes = 0;
  std::vector<uint8_t> class_of;  // of each tile
};

inline constexpr int kSmallestTileLog2 = 5;  // a group of lanes
inline constexpr int kMaxTileClasses = 16;

// Classes of like spread, and the tile length that tells them apart best. No classes if one is best.
Tiles choose_tiles(const std::vector<uint16_t>& symbols, const Alphabet& alphabet, Geometry geometry);

void write_tiles(const Tiles& tiles, BitWriter* writer);
Status read_tiles(BitReader* reader, int64_t count, Tiles* tiles);

}  // namespace onnxcomp::codec::rans
