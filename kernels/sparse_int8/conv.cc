#include "sparse_int8/conv.h"

#include <algorithm>
#include <cstring>

namespace onnxcomp::sparse_int8 {

Conv::Conv(const Kernel& kernel, const Layer& layer, const ConvShape& shape, Scratch& scratch,
           const uint8_t* x, int64_t images, int64_t height, int64_t width, uint8_t* codes,
           float* results)
    : kernel_(kernel),
      layer_(layer),
      shape_(shape),
      x_(x),
      images_(images),
      height_(height),
      width_(width),
      codes_(codes),
      results_(results),
      quads_(layer.weights().groups * layer.weights().quads_per_position()),
      geometry_(shape, height, width, images * quads_, kQuad),
      // Whole vectors, for loads that cross a cache line take twice the time, and up to one more: the
      // last tile reads so far beyond the pixels, and nothing comes of it.
      quad_bytes_((geometry_.channel_pixels() + 2 * kLanes - 2) / kLanes * kLanes * kQuad),
      tiles_((geometry_.flat_columns() + kTileColumns - 1) / kTileColumns),
      copies_(geometry_, images, quads_, tiles_),
      parts_(layer.weights(), images * tiles_) {
  const PackedWeights& weights = layer.weights();
  if (images == 0) return;
  if (weights.in_channels % kQuad != 0)
    missing_.assign(static_cast<size_t>(height * width), layer.x_zero_point());
  const int64_t quads = weights.quads_per_position();
  places_.reserve(static_cast<size_t>(weights.positions * quads));
  for (const int64_t place : geometry_.tap_places()) {
    for (int64_t quad = 0; quad < quads; ++quad)
      places_.push_back(quad * quad_bytes_ + place * kQuad);
  }
  copy_ = scratch.reserve(images * quads_ * quad_bytes_);
}

// Rows of the copy, whose neighbours are those of the image: all at once, into padding.
void Conv::fill_rows(const Planes& planes, int64_t first_row, int64_t last_row,
                     uint8_t* to) const {
  const CopyPhase &rows = geometry_.rows().phases[0], &columns = geometry_.columns().phases[0];
  const int64_t length = geometry_.columns().length;
  std::memset(to + first_row * length * kQuad, layer_.x_zero_point(),
              static_cast<size_t>((last_row - first_row) * length * kQuad));
  const int64_t first = std::max(first_row, rows.first), last = std::min(last_row, rows.last);
  const Patch patch{(rows.pixel + first - rows.first) * width_ + columns.pixel,
                    columns.last - columns.first, last - first, width_, length};
  kernel_.interleave(planes, patch, to + (first * length + columns.first) * kQuad);
}

// One row of one phase: to[length, kQuad], from a row that begins at `start` of each plane.
void Conv::fill_row(const Planes& planes, int64_t start, const CopyPhase& phase,
                    uint8_t* to) const {
  fill_with_padding(to, phase.first);
  fill_with_padding(to + phase.last * kQuad, geometry_.columns().length - phase.last);
  const int64_t stride = shape_.columns.stride;
  int64_t pixel = phase.pixel;
  constexpr int64_t kChunk = 256;
  uint8_t chunk[kChunk * kQuad];
  for (int64_t column = phase.first; column < phase.last;) {
    const int64_t pixels = std::min(kChunk, width_ - pixel);
    kernel_.interleave(planes, {start + pixel, pixels, 1, 0, 0}, chunk);
    for (int64_t i = 0; i < pixels && column < phase.last; i += stride, pixel += stride, ++column)
      std::memcpy(to + column * kQuad, chunk + i * kQuad, kQuad);
  }
}

void Conv::fill_with_padding(uint8_t* to, int64_t pixels) const {
  const auto code = layer_.x_zero_point();
  if (pixels >= kLanes) {
    std::memset(to, code, static_cast<size_t>(pixels * kQuad));
    return;
  }
  const uint8_t quad[kQuad] = {code, code, code, code};
  for (int64_t i = 0; i < pixels; ++i) std::memcpy(to + i * kQuad, quad, kQuad);
}

// The channels of a quad; one that is missing has the zero point.
Planes Conv::planes_of(int64_t image, int64_t quad) const {
  const PackedWeights& weights = layer_.weights();
  const int64_t group = weights.groups == 1 ? 0 : quad / weights.quads_per_position();
  const int64_t first = (quad - group * weights.quads_per_position()) * kQuad;
  const int64_t channel = (image * weights.groups + group) * weights.in_channels + first;
  Planes planes;
  for (int64_t i = 0; i < kQuad; ++i) {
    const bool exists = first + i < weights.in_channels;
    planes.channels[i] = exists ? x_ + (channel + i) * height_ * width_ : missing_.data();
  }
  return planes;
}

void Conv::fill(const CopyPiece& piece) const noexcept {
  const auto [first_row, last_row] = piece.rows;
  const bool copies = geometry_.copies(), ends = last_row == geometry_.rows().length;
  const int64_t used = geometry_.channel_pixels() * kQuad;
  for (int64_t quad = piece.first_channel; quad < piece.last_channel; ++quad) {
    const Planes planes = planes_of(piece.image, quad);
    uint8_t* to = copy_ + (piece.image * quads_ + quad) * quad_bytes_;
    if (ends) std::memset(to + used, 0, static_cast<size_t>(quad_bytes_ - used));
    if (copies) {  // one long row, for nothing comes between them
      const int64_t pixels = (last_row - first_row) * width_;
      kernel_.interleave(planes, {first_row * width_, pixels, 1, 0, 0},
                         to + first_row * width_ * kQuad);
      continue;
    }
    if (shape_.rows.stride == 1 && shape_.columns.stride == 1) {
      fill_rows(planes, first_row, last_row, to);
      continue;
    }
    geometry_.fill(
        piece.rows,
        [&](int64_t pixel, int64_t pixels) { fill_with_padding(to + pixel * kQuad, pixels); },
        [&](int64_t pixel, int64_t row, const CopyPhase& columns) {
          fill_row(planes, row * width_, columns, to + pixel * kQuad);
        });
  }
}

template <class Result, class Multiply>
void Conv::multiply_tile(Multiply multiply, int64_t image, int64_t tile, BlockRange blocks,
                         Result* y) const {
  const PackedWeights& weights = layer_.weights();
  const int64_t first_column = tile * kTileColumns;
  const int64_t last_column = std::min(first_column + kTileColumns, geometry_.flat_columns());
  Segment segments[kTileColumns];
  const int segment_count = geometry_.find_segments(first_column, last_column, segments);
  const int64_t pixels = geometry_.outputs();
  const int64_t vectors = (last_column - first_column + kLanes - 1) / kLanes;
  const bool whole = segment_count == 1 && segments[0].length == vectors * kLanes;
  const int64_t group_blocks = weights.group_blocks();
  const int64_t group_outputs = weights.group_outputs();

  alignas(64) Result results[kTileRows * kTileColumns];
  for (int64_t block = blocks.first; block < blocks.last;) {
    const int64_t group = block / group_blocks;
    const int64_t last = std::min(
        {block + parts_.blocks_together(), blocks.last, (group + 1) * group_blocks});
    const int64_t quad = image * quads_ + group * weights.quads_per_position();
    const Columns columns{copy_ + quad * quad_bytes_ + first_column * kQuad, places_.data(),
                          weights.positions == 1 ? quad_bytes_ : 0, vectors};
    const int64_t row = (block - group * group_blocks) * weights.block_rows;
    const int64_t computed = (last - block) * weights.block_rows;
    const int64_t rows = std::min(computed, group_outputs - row);
    const int64_t channel = image * weights.out_channels + group * group_outputs + row;
    Result* to = y + channel * pixels;
    if (whole && rows == computed) {
      multiply(weights, layer_.scaling(), columns, {block, last}, to + segments[0].to, pixels);
    } else {
      multiply(weights, layer_.scaling(), columns, {block, last}, results, kTileColumns);
      for (int64_t i = 0; i < rows; ++i, to += pixels) {
        for (int s = 0; s < segment_count; ++s)
          copy_short(results + i * kTileColumns + segments[s].from, segments[s].length,
                     to + segments[s].to);
      }
    }
    block = last;
  }
}

void Conv::run(int64_t task) const noexcept {
  const int64_t tile = task / parts_.count() % tiles_;
  const int64_t image = task / parts_.count() / tiles_;
  copies_.need(image, tile * kTileColumns,
               std::min((tile + 1) * kTileColumns, geometry_.flat_columns()),
               [&](const CopyPiece& piece) { fill(piece); });
  const BlockRange blocks = parts_.blocks(task % parts_.count());
  if (codes_ != nullptr) {
    multiply_tile(kernel_.multiply, image, tile, blocks, codes_);
  } else {
    multiply_tile(kernel_.multiply_to_float, image, tile, blocks, results_);
  }
}

int64_t Conv::work() const {
  const PackedWeights& weights = layer_.weights();
  return images_ * tiles_ * kTileColumns * weights.entry_count() * weights.block_rows * kQuad;
}

}  // namespace onnxcomp::sparse_int8
