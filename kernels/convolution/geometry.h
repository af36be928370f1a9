#pragma once

// How the sparse families slide windows over an image: along the rows of a padded copy of it.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace onnxcomp {

// One axis of a convolution, as ONNX counts: the window of `taps` pixels, `dilation` apart, begins
// `pad_before` pixels outside the image and moves by `stride`.
struct ConvAxis {
  int64_t taps = 1;
  int64_t stride = 1;
  int64_t dilation = 1;
  int64_t pad_before = 0;
  int64_t pad_after = 0;

  // Below 1 where no window fits.
  int64_t outputs(int64_t pixels) const;
};

struct ConvShape {
  ConvAxis rows;
  ConvAxis columns;

  int64_t positions() const { return rows.taps * columns.taps; }
};

// One line that says which number is out of range, or an empty string.
std::string find_defect(const ConvShape& shape);

// Pixels of an axis with one remainder modulo the stride, in the padded copy: those from `first` to
// `last` (exclusive) are the image's, from `pixel` on; the others are padding.
struct CopyPhase {
  int64_t first;
  int64_t last;
  int64_t pixel;
};

// One axis of the padded copy. Its pixels are dealt out by their remainder modulo the stride, so
// that the pixels that one tap reads are neighbours: a convolution of stride 1 over several images.
struct CopyAxis {
  CopyAxis(const ConvAxis& axis, int64_t pixels);

  // Whether the copy is the axis as it was.
  bool copies(int64_t pixels) const;

  int64_t outputs;
  int64_t length;                  // pixels of each phase
  std::vector<CopyPhase> phases;   // those that a tap reads
  std::vector<int64_t> tap_phase;  // [taps]: which of `phases`
  std::vector<int64_t> tap_shift;  // [taps]: pixels between an output and what it reads
};

// Rows of a phase of the copy, first to last (exclusive).
struct CopyRows {
  int64_t first;
  int64_t last;
};

// Pixels of one row of outputs within a tile: from a column of the tile to pixels of the image.
struct Segment {
  int64_t from;
  int64_t to;
  int64_t length;
};

// The copy of one channel: [row phases, column phases, rows, columns]. Outputs are computed along
// its rows, across their ends; columns that are no output's are left out when they are written.
class ConvGeometry {
 public:
  // The shape has no defect, and at least one window fits. Throws std::bad_alloc where a copy of so
  // many channels of `pixel_bytes` for each pixel is more than any memory.
  ConvGeometry(const ConvShape& shape, int64_t height, int64_t width, int64_t channels,
               int64_t pixel_bytes);

  const CopyAxis& rows() const { return rows_; }
  const CopyAxis& columns() const { return columns_; }
  // Whether the copy of a channel is the channel as it was.
  bool copies() const { return rows_.copies(height_) && columns_.copies(width_); }
  int64_t outputs() const { return rows_.outputs * columns_.outputs; }
  // Columns to compute, from the first output to the last.
  int64_t flat_columns() const;
  // Pixels of the copy of one channel.
  int64_t channel_pixels() const;
  // Of one phase.
  int64_t plane_pixels() const { return rows_.length * columns_.length; }
  // Of the phases; they lie one behind the other.
  int64_t planes() const {
    return static_cast<int64_t>(rows_.phases.size() * columns_.phases.size());
  }
  // The rows of every phase that columns `first` to `last` (exclusive) read.
  CopyRows rows_read(int64_t first, int64_t last) const;
  // Where in it the first output finds what a tap reads: [positions], in pixels.
  std::vector<int64_t> tap_places() const;
  // Where the columns of a tile go; there is room for one segment for each of them.
  int find_segments(int64_t first_column, int64_t last_column, Segment* segments) const;

  // Fills all rows of the copy of one channel.
  template <class Pad, class CopyRow>
  void fill(const Pad& pad, const CopyRow& copy) const {
    fill({0, rows_.length}, pad, copy);
  }
  // Fills rows of the copy of one channel: pad(pixel, pixels) and copy(pixel, row of the image,
  // columns), which writes a row of the copy, its padding included.
  template <class Pad, class CopyRow>
  void fill(CopyRows rows, const Pad& pad, const CopyRow& copy) const {
    int64_t plane = 0;
    for (const CopyPhase& phase : rows_.phases) {
      const int64_t top = std::clamp(phase.first, rows.first, rows.last);
      const int64_t bottom = std::clamp(phase.last, rows.first, rows.last);
      for (const CopyPhase& column_phase : columns_.phases) {
        pad(plane + rows.first * columns_.length, (top - rows.first) * columns_.length);
        for (int64_t row = top; row < bottom; ++row)
          copy(plane + row * columns_.length, phase.pixel + (row - phase.first) * row_stride_,
               column_phase);
        pad(plane + bottom * columns_.length, (rows.last - bottom) * columns_.length);
        plane += plane_pixels();
      }
    }
  }

 private:
  int64_t height_;
  int64_t width_;
  int64_t row_stride_;
  CopyAxis rows_;
  CopyAxis columns_;
};

// Copies of a few dozen bytes, for which a call of memcpy would take longer than the copy.
template <class T>
void copy_short(const T* from, int64_t count, T* to) {
  constexpr int64_t kStep = 16 / sizeof(T);
  if (count >= kStep) {
    // The last step overlaps the one before. Of a plain loop compilers make the call of memcpy.
    const int64_t last = count - kStep;
    int64_t i = 0;
    for (; i < last; i = std::min(i + kStep, last)) std::memcpy(to + i, from + i, 16);
    std::memcpy(to + i, from + i, 16);
    return;
  }
  if (count >= kStep / 2) {
    std::memcpy(to, from, 8);
    std::memcpy(to + count - kStep / 2, from + count - kStep / 2, 8);
    return;
  }
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

}  // namespace onnxcomp
