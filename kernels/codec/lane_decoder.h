#pragma once

#include <vector>

#include "codec/bits.h"
#include "codec/rans.h"
#include "codec/row_model.h"

namespace onnxcomp::codec::rans {

// Codes in C order, class by class of consecutive codes: everything behind the tables of a payload.
class LaneDecoder {
 public:
  LaneDecoder(const Header& header, const FrequencyTable& table, Geometry geometry,
              const LaneKernel& kernel, const Sink& sink);

  // `rest` begins with the escaped codes.
  Status open(Bytes rest);

  // Codes begin .. begin + count - 1, all of class c. `begin` is a multiple of 32.
  Status decode(int c, int64_t begin, int64_t count);

  // All codes, row by row side by side.
  Status decode_rows(const RowModel& model);

  // Everything was used up, and the states are those the encoder began with.
  Status close() const;

 private:
  Status decode_block(int c, int64_t begin, int64_t count);
  Status decode_one_by_one(const LaneTable& table, int64_t begin, int64_t first, int64_t count,
                           Escapes* escapes);
  Status fill_escapes(int64_t begin, int64_t count);
  void finish(int64_t begin, int64_t count);
  void scale(int64_t begin, int64_t count);

  const Header& header_;
  const Geometry geometry_;
  const LaneKernel& kernel_;
  const Sink sink_;
  std::vector<uint32_t> entries_;
  std::vector<uint32_t> positions_;
  LaneStates lanes_{};
  BitReader side_{{nullptr, 0}};
  BitReader low_{{nullptr, 0}};
};

}  // namespace onnxcomp::codec::rans
