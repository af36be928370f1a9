#pragma once

// The contexts of the profile `rows`: what a header says of them.

#include <vector>

#include "codec/bits.h"
#include "codec/rans.h"

namespace onnxcomp::codec::rans {

inline constexpr int kMaxClasses = 84;
inline constexpr int64_t kMaxRowLength = 1 << 15;  // bounds what decoding a group holds in memory

// The numbers that a header holds for one position of the kernel.
struct PositionWeights {
  int32_t prediction[5];  // codes 1, 2, 3, 4 and `far` before
  int32_t scale[4];       // magnitudes: near (1 to 3 before), far, row, column
  int32_t bias;
};

struct RowModel {
  int mean_levels = 1;
  int scale_levels = 1;
  int center = 0;
  int32_t start_row = 0;
  int32_t start_column = 0;
  std::vector<PositionWeights> weights;  // one, or one a position of the kernel

  int classes() const noexcept { return mean_levels * scale_levels; }
};

// How many codes back `far` is: the same position of the channel before.
inline int64_t far_of(Geometry geometry) noexcept { return geometry.kernel > 4 ? geometry.kernel : 5; }

void write_row_model(const RowModel& model, BitWriter* writer);
Status read_row_model(BitReader* reader, Geometry geometry, RowModel* model);

// As the lanes want them.
std::vector<RowPosition> lane_positions(const RowModel& model);

// The context that a symbol becomes, by symbol.
std::vector<int8_t> symbol_contexts(const Header& header, int32_t center);

// Memory and loops around one group of rows after another, for decoder and encoder.
class RowGroups {
 public:
  RowGroups(const RowModel& model, Geometry geometry, int lanes);

  // Forgets the rows before and lets `active` rows begin.
  void begin(int active);
  // After a whole group: what the next one knows of every column.
  void end();

  RowTable table(const uint32_t* entries, const Header& header) const;
  RowGroup group();
  RowLanes rows;

 private:
  const RowModel& model_;
  const int64_t length_;
  const int64_t far_;
  const int lanes_;
  int active_ = 0;
  std::vector<RowPosition> positions_;
  std::vector<int32_t> columns_;
  std::vector<uint8_t> symbols_;
  std::vector<int8_t> contexts_;  // far_ steps of zeros first
};

}  // namespace onnxcomp::codec::rans
