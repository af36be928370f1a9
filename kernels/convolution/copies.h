#pragma once

#include <cstdint>

#include "convolution/geometry.h"
#include "cpu/pieces.h"

namespace onnxcomp {

// Some rows, of every phase, of the copies of some neighbouring channels of an image.
struct CopyPiece {
  int64_t image;
  CopyRows rows;
  int64_t first_channel;
  int64_t last_channel;
};

// Copies of images, which the tasks of a convolution make as they need them. Where channels of an
// image are copied together, what is called a channel here is one copy.
class Copies {
 public:
  // Outputs are computed in `tiles` tiles an image. Throws std::bad_alloc.
  Copies(const ConvGeometry& geometry, int64_t images, int64_t channels, int64_t tiles);

  // Has everything copied by copy(CopyPiece) that columns `first` to `last` (exclusive) of an image
  // read, of all channels.
  template <class Copy>
  void need(int64_t image, int64_t first, int64_t last, const Copy& copy) const noexcept {
    const auto copy_piece = [&](int64_t piece) { copy(piece_at(piece)); };
    const int64_t first_band = image * bands_;
    const CopyRows rows = geometry_.rows_read(first, last);
    // The last columns are computed together with some beyond, which begin the next phase.
    if (last == geometry_.flat_columns() && geometry_.planes() > 1)
      pieces_.need(first_band * chunks_, (first_band + 1) * chunks_, copy_piece);
    pieces_.need((first_band + rows.first / band_rows_) * chunks_,
                 (first_band + (rows.last - 1) / band_rows_ + 1) * chunks_, copy_piece);
  }

 private:
  CopyPiece piece_at(int64_t piece) const;

  const ConvGeometry& geometry_;
  int64_t channels_;  // of one image
  int64_t band_rows_;  // of every phase
  int64_t bands_;   // of one image
  int64_t chunks_;  // of its channels
  Pieces pieces_;   // [images, bands, chunks]
};

}  // namespace onnxcomp
