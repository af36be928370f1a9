#include "sparse_int8/conv.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

namespace onnxcomp::sparse_int8 {
namespace {

constexpr int64_t kTasksWanted = 32;
constexpr int64_t kLargestWindow = 1 << 15;
constexpr double kLargestCopy = 70368744177664.0;  // 2^46, so that no product overflows

std::string find_axis_defect(const char* name, const ConvAxis& axis) {
  const auto describe = [&](const char* what, int64_t found, const char* expected) {
    return std::string(what) + " of the " + name + " is " + std::to_string(found) + ", expected " +
           expected;
  };
  for (const auto& [what, found] : {std::pair{"the kernel", axis.taps},
                                    {"the stride", axis.stride},
                                    {"the dilation", axis.dilation}}) {
    if (found < 1 || found > kLargestWindow) return describe(what, found, "1 to 32768");
  }
  for (const int64_t pad : {axis.pad_before, axis.pad_after}) {
    if (pad < 0 || pad > kLargestWindow) return describe("padding", pad, "0 to 32768");
  }
  return {};
}

// Copies of a few dozen bytes, for which a call of memcpy would take longer than the copy.
template <class T>
void copy_short(const T* from, int64_t count, T* to) {
  constexpr int64_t kStep = 16 / sizeof(T);
  if (count >= kStep) {
    int64_t i = 0;
    for (; i + kStep <= count; i += kStep) std::memcpy(to + i, from + i, 16);
    std::memcpy(to + count - kStep, from + count - kStep, 16);
    return;
  }
  if (count >= kStep / 2) {
    std::memcpy(to, from, 8);
    std::memcpy(to + count - kStep / 2, from + count - kStep / 2, 8);
    return;
  }
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

}  // namespace

int64_t ConvAxis::outputs(int64_t pixels) const {
  const int64_t room = pixels + pad_before + pad_after - dilation * (taps - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

std::string find_defect(const ConvShape& shape) {
  const std::string defect = find_axis_defect("rows", shape.rows);
  return defect.empty() ? find_axis_defect("columns", shape.columns) : defect;
}

CopyAxis::CopyAxis(const ConvAxis& axis, int64_t pixels)
    : outputs(axis.outputs(pixels)),
      length(outputs + axis.dilation * (axis.taps - 1) / axis.stride) {
  std::vector<int64_t> remainders;
  for (int64_t tap = 0; tap < axis.taps; ++tap) {
    const int64_t remainder = tap * axis.dilation % axis.stride;
    const auto known = std::find(remainders.begin(), remainders.end(), remainder);
    tap_phase.push_back(known - remainders.begin());
    tap_shift.push_back(tap * axis.dilation / axis.stride);
    if (known != remainders.end()) continue;
    remainders.push_back(remainder);
    // Copied pixel i is pixel i * stride - before of the image.
    const int64_t before = axis.pad_before - remainder;
    const int64_t first = before <= 0 ? 0 : (before + axis.stride - 1) / axis.stride;
    const int64_t end = pixels + before <= 0 ? 0 : (pixels + before - 1) / axis.stride + 1;
    CopyPhase phase;
    phase.first = std::min(first, length);
    phase.last = std::clamp(end, phase.first, length);
    phase.pixel = phase.first * axis.stride - before;
    phases.push_back(phase);
  }
}

bool CopyAxis::copies(int64_t pixels) const {
  return phases.size() == 1 && phases[0].first == 0 && phases[0].last == pixels && length == pixels;
}

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
      rows_(shape.rows, height),
      columns_(shape.columns, width) {
  const PackedWeights& weights = layer.weights();
  quads_ = weights.groups * weights.quads_per_position();
  tiles_ = (flat_columns() + kTileColumns - 1) / kTileColumns;
  if (images == 0) return;
  const int64_t rows = weights.block_count() * weights.block_rows;
  parts_ =
      std::clamp<int64_t>(kTasksWanted / (images * tiles_), 1, (rows + kTileRows - 1) / kTileRows);
  if (weights.in_channels % kQuad != 0)
    missing_.assign(static_cast<size_t>(height * width), layer.x_zero_point());
  const double bytes = static_cast<double>(images) * static_cast<double>(quads_) *
                       static_cast<double>(rows_.phases.size() * columns_.phases.size() * kQuad) *
                       static_cast<double>(rows_.length) * static_cast<double>(columns_.length);
  if (bytes > kLargestCopy) throw std::bad_alloc();
  for (size_t row = 0; row < rows_.tap_phase.size(); ++row) {
    for (size_t column = 0; column < columns_.tap_phase.size(); ++column) {
      const auto column_phases = static_cast<int64_t>(columns_.phases.size());
      const int64_t plane = rows_.tap_phase[row] * column_phases + columns_.tap_phase[column];
      const int64_t pixel = rows_.tap_shift[row] * columns_.length + columns_.tap_shift[column];
      for (int64_t quad = 0; quad < weights.quads_per_position(); ++quad)
        places_.push_back(quad * quad_bytes() + plane * plane_bytes() + pixel * kQuad);
    }
  }
  // The last tile of the last plane reads up to a tile beyond its end; nothing comes of it.
  constexpr int64_t kBeyond = kTileColumns * kQuad;
  copy_ = scratch.reserve(images * quads_ * quad_bytes() + kBeyond);
  std::memset(copy_ + images * quads_ * quad_bytes(), 0, kBeyond);
}

int64_t Conv::flat_columns() const {
  return (rows_.outputs - 1) * columns_.length + columns_.outputs;
}

int64_t Conv::plane_bytes() const { return rows_.length * columns_.length * kQuad; }

int64_t Conv::quad_bytes() const {
  return static_cast<int64_t>(rows_.phases.size() * columns_.phases.size()) * plane_bytes();
}

// One row of one phase: to[columns_.length, kQuad], from a row that begins at `start` of each
// plane.
void Conv::fill_row(const Planes& planes, int64_t start, const CopyPhase& phase,
                    uint8_t* to) const {
  fill_with_padding(to, phase.first);
  fill_with_padding(to + phase.last * kQuad, columns_.length - phase.last);
  const int64_t stride = shape_.columns.stride;
  int64_t pixel = phase.pixel;
  if (stride == 1)
    return kernel_.interleave(planes, start + pixel, phase.last - phase.first,
                              to + phase.first * kQuad);
  constexpr int64_t kChunk = 256;
  uint8_t chunk[kChunk * kQuad];
  for (int64_t column = phase.first; column < phase.last;) {
    const int64_t pixels = std::min(kChunk, width_ - pixel);
    kernel_.interleave(planes, start + pixel, pixels, chunk);
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

void Conv::fill(int64_t task) const noexcept {
  const PackedWeights& weights = layer_.weights();
  const int64_t image = task / quads_;
  const int64_t group = task % quads_ / weights.quads_per_position();
  const int64_t first = task % weights.quads_per_position() * kQuad;
  const int64_t channel = (image * weights.groups + group) * weights.in_channels + first;
  Planes planes;
  for (int64_t i = 0; i < kQuad; ++i) {
    const bool exists = first + i < weights.in_channels;
    planes.channels[i] = exists ? x_ + (channel + i) * height_ * width_ : missing_.data();
  }
  // All rows in one go where nothing comes between them.
  const bool joined = rows_.copies(height_) && columns_.copies(width_);
  uint8_t* to = copy_ + task * quad_bytes();
  if (joined) return kernel_.interleave(planes, 0, height_ * width_, to);
  for (const CopyPhase& row_phase : rows_.phases) {
    for (const CopyPhase& column_phase : columns_.phases) {
      int64_t y = row_phase.pixel;
      fill_with_padding(to, row_phase.first * columns_.length);
      to += row_phase.first * columns_.length * kQuad;
      for (int64_t row = row_phase.first; row < row_phase.last; ++row) {
        fill_row(planes, y * width_, column_phase, to);
        y += shape_.rows.stride;
        to += columns_.length * kQuad;
      }
      const int64_t below = (rows_.length - row_phase.last) * columns_.length;
      fill_with_padding(to, below);
      to += below * kQuad;
    }
  }
}

int Conv::find_segments(int64_t first_column, int64_t last_column, Segment* segments) const {
  if (columns_.outputs == columns_.length) {  // one long row
    *segments = {0, first_column, last_column - first_column};
    return 1;
  }
  int count = 0;
  for (int64_t column = first_column; column < last_column;) {
    const int64_t row = column / columns_.length;
    const int64_t at = column % columns_.length;
    const int64_t length = std::min(columns_.outputs - at, last_column - column);
    if (length > 0)
      segments[count++] = {column - first_column, row * columns_.outputs + at, length};
    column = (row + 1) * columns_.length;
  }
  return count;
}

template <class Result, class Multiply>
void Conv::multiply_tile(Multiply multiply, int64_t image, int64_t tile, BlockRange blocks,
                         Result* y) const {
  const PackedWeights& weights = layer_.weights();
  const int64_t first_column = tile * kTileColumns;
  const int64_t last_column = std::min(first_column + kTileColumns, flat_columns());
  Segment segments[kTileColumns] = {};
  const int segment_count = find_segments(first_column, last_column, segments);
  const int64_t pixels = rows_.outputs * columns_.outputs;
  const int64_t vectors = (last_column - first_column + kLanes - 1) / kLanes;
  const bool whole = segment_count == 1 && segments[0].length == vectors * kLanes;
  const int64_t blocks_together = kTileRows / weights.block_rows;
  const int64_t group_blocks = weights.group_blocks();
  const int64_t group_outputs = weights.group_outputs();

  alignas(64) Result results[kTileRows * kTileColumns];
  for (int64_t block = blocks.first; block < blocks.last;) {
    const int64_t group = block / group_blocks;
    const int64_t last =
        std::min({block + blocks_together, blocks.last, (group + 1) * group_blocks});
    const int64_t quad = image * quads_ + group * weights.quads_per_position();
    const Columns columns{copy_ + quad * quad_bytes() + first_column * kQuad, places_.data(),
                          vectors};
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

void Conv::multiply(int64_t task) const noexcept {
  const PackedWeights& weights = layer_.weights();
  const int64_t blocks_together = kTileRows / weights.block_rows;
  const int64_t steps = (weights.block_count() + blocks_together - 1) / blocks_together;
  const int64_t part = task % parts_;
  const int64_t tile = task / parts_ % tiles_;
  const int64_t image = task / parts_ / tiles_;
  const BlockRange blocks{
      steps * part / parts_ * blocks_together,
      std::min(steps * (part + 1) / parts_ * blocks_together, weights.block_count())};
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
