#pragma once

// How the codes of a stream are cut into chunks (docs/container.md, "Streams and chunks").

#include <algorithm>

#include "codec/geometry.h"

namespace onnxcomp::decode {

struct Cut {
  uint64_t rows = 1;
  uint64_t columns = 1;
  uint64_t kernel = 1;
  uint64_t step = 0;  // rows of a chunk; 0: chunks are kMaxCodes codes

  static constexpr uint64_t kMost = static_cast<uint64_t>(codec::kMaxCodes);

  // Of numbers of `bits` bits.
  Cut(uint64_t rows_, uint64_t columns_, uint64_t kernel_, int bits) noexcept
      : rows(rows_), columns(columns_), kernel(kernel_) {
    if (count() == 0) return;
    step = std::min(kMost / (columns * kernel), rows);
    if (bits < 8 && step < rows) step -= step % 8;
  }

  // Whether a row may be of several chunks, were there any rows.
  bool splits_rows() const noexcept { return columns * kernel > kMost; }

  uint64_t count() const noexcept { return rows * columns * kernel; }

  uint64_t chunks() const noexcept {
    if (count() == 0) return 0;
    return step > 0 ? (rows + step - 1) / step : (count() + kMost - 1) / kMost;
  }

  // The first code of a chunk.
  uint64_t start(uint64_t chunk) const noexcept { return chunk * (step > 0 ? step * columns * kernel : kMost); }

  codec::Geometry geometry(uint64_t chunk) const noexcept {
    if (step == 0) return {1, static_cast<int64_t>(std::min(kMost, count() - start(chunk))), 1};
    return {static_cast<int64_t>(std::min(step, rows - chunk * step)), static_cast<int64_t>(columns),
            static_cast<int64_t>(kernel)};
  }
};

}  // namespace onnxcomp::decode
