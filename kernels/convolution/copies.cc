#include "convolution/copies.h"

#include <algorithm>

namespace onnxcomp {
namespace {

// Pieces of all images, at least, so that threads share what they all need at once.
constexpr int64_t kPiecesWanted = 8;
// Bands of fewer rows take longer to copy, and those of more are made by threads that read little
// of them.
constexpr int64_t kTilesOfBand = 3;

int64_t quotient_up(int64_t number, int64_t divisor) { return (number + divisor - 1) / divisor; }

}  // namespace

Copies::Copies(const ConvGeometry& geometry, int64_t images, int64_t channels, int64_t tiles)
    : geometry_(geometry),
      channels_(channels),
      band_rows_(quotient_up(geometry.rows().length, std::max<int64_t>(tiles / kTilesOfBand, 1))),
      bands_(quotient_up(geometry.rows().length, band_rows_)),
      chunks_(std::clamp<int64_t>(kPiecesWanted / std::max<int64_t>(images * bands_, 1), 1, channels)),
      pieces_(images * bands_ * chunks_) {}

CopyPiece Copies::piece_at(int64_t piece) const {
  const int64_t chunk = piece % chunks_;
  const int64_t first_row = piece / chunks_ % bands_ * band_rows_;
  return {piece / chunks_ / bands_,
          {first_row, std::min(first_row + band_rows_, geometry_.rows().length)},
          channels_ * chunk / chunks_,
          channels_ * (chunk + 1) / chunks_};
}

}  // namespace onnxcomp
