#include "sparse/conv.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "entries/entry_lists.h"

namespace onnxcomp::sparse {
namespace {

constexpr int64_t kTasksWanted = 32;
constexpr int64_t kMostResults = std::max(kTileRows * kTilePixels, kSliceOutputs * kBroadColumns);
constexpr int64_t kFloat = sizeof(float);

// Whether single weights read inputs often enough that copies of slices pay.
bool slices_pay(const PackedWeights& weights) {
  constexpr int64_t kReads = 5;
  const int64_t copies = (weights.group_outputs() + kSliceOutputs - 1) / kSliceOutputs;
  return weights.block_size == 1 &&
         weights.entry_count() / weights.in_features >= kReads * copies * weights.groups;
}

}  // namespace

const float kLowest = -std::numeric_limits<float>::infinity();

std::string find_channel_defect(int64_t in_channels, int64_t positions) {
  const int64_t most = std::numeric_limits<int32_t>::max() / positions;
  if (in_channels >= 1 && in_channels <= most) return {};
  return describe_defect("in_channels", in_channels, "1 to " + std::to_string(most));
}

Conv::Conv(const Kernel& kernel, const PackedWeights& weights, const float* bias, float low,
           const ConvShape& shape, Scratch& scratch, const float* x, int64_t images, int64_t height,
           int64_t width, float* y)
    : kernel_(kernel),
      weights_(weights),
      low_(low),
      column_stride_(shape.columns.stride),
      x_(x),
      images_(images),
      height_(height),
      width_(width),
      y_(y),
      positions_(shape.positions()),
      channels_(weights.groups * (weights.in_features / positions_)),
      geometry_(shape, height, width, images * channels_, kFloat),
      slices_(slices_pay(weights)),
      tile_pixels_(slices_ ? kBroadColumns : kTilePixels),
      rows_together_(slices_ ? kSliceOutputs : kTileRows),
      tiles_((geometry_.flat_columns() + tile_pixels_ - 1) / tile_pixels_) {
  if (images == 0) return;
  const int64_t rows = weights.block_count() * weights.block_size;
  parts_ = std::clamp<int64_t>(kTasksWanted / (images * tiles_), 1,
                               (rows + rows_together_ - 1) / rows_together_);
  lay_out(bias);
  const int64_t columns = geometry_.flat_columns();
  const bool fills_tile = columns >= tile_pixels_ || columns % kColumnLanes == 0;
  if (geometry_.copies() && fills_tile) return;
  // The last tile of the last channel reads beyond its end; nothing comes of it.
  const int64_t pixels = images * channels_ * geometry_.channel_pixels();
  copy_ = reinterpret_cast<float*>(scratch.reserve((pixels + kTilePixels) * kFloat));
  std::memset(copy_ + pixels, 0, kTilePixels * kFloat);
}

void Conv::lay_out(const float* bias) {
  const int64_t channels = weights_.in_features / positions_;
  const int64_t pixels = geometry_.channel_pixels();
  places_.resize(static_cast<size_t>(weights_.in_features));
  int64_t* to = places_.data();
  for (const int64_t place : geometry_.tap_places()) {
    for (int64_t channel = 0; channel < channels; ++channel) *to++ = channel * pixels + place;
  }
  const int64_t size = weights_.block_size;
  bias_.assign(static_cast<size_t>(weights_.block_count() * size), 0.0f);
  if (bias == nullptr) return;
  const int64_t outputs = weights_.group_outputs();
  for (int64_t group = 0; group < weights_.groups; ++group)
    std::copy_n(bias + group * outputs, outputs,
                bias_.data() + group * weights_.group_blocks() * size);
}

void Conv::copy_row(const float* from, const CopyPhase& phase, float* to) const {
  const int64_t count = phase.last - phase.first;
  from += phase.pixel;
  to += phase.first;
  if (column_stride_ == 1) return copy_short(from, count, to);
  if (column_stride_ == 2) {  // a number that is known lets compilers use vectors
    for (int64_t i = 0; i < count; ++i) to[i] = from[2 * i];
    return;
  }
  for (int64_t i = 0; i < count; ++i) to[i] = from[i * column_stride_];
}

void Conv::fill(int64_t task) const noexcept {
  const float* image = x_ + task * height_ * width_;
  float* channel = copy_ + task * geometry_.channel_pixels();
  if (geometry_.copies()) {  // copied only because tiles read beyond the last channel
    std::copy_n(image, geometry_.channel_pixels(), channel);
    return;
  }
  // All of it at once takes less time than the many short pieces that are padding.
  std::fill_n(channel, geometry_.channel_pixels(), 0.0f);
  geometry_.fill([](int64_t, int64_t) {},
                 [&](int64_t pixel, int64_t row, const CopyPhase& columns) {
                   copy_row(image + row * width_, columns, channel + pixel);
                 });
}

Conv::Tile Conv::tile_at(int64_t index) const {
  Tile tile;
  const int64_t first = index * tile_pixels_;
  const int64_t last = std::min(first + tile_pixels_, geometry_.flat_columns());
  tile.units = (last - first + kColumnLanes - 1) / kColumnLanes;
  // Without a copy nothing may be read beyond the image: the last tile begins earlier, and does not
  // write what another one does.
  const bool is_beyond = first + tile.units * kColumnLanes > last;
  tile.first_column = copy_ == nullptr && is_beyond ? last - tile.units * kColumnLanes : first;
  tile.segment_count = geometry_.find_segments(first, last, tile.segments);
  for (int i = 0; i < tile.segment_count; ++i) tile.segments[i].from += first - tile.first_column;
  tile.whole = tile.segment_count == 1 && tile.segments[0].length == tile.units * kColumnLanes;
  return tile;
}

void Conv::write(const float* results, const Tile& tile, int64_t rows, float* to) const {
  for (int64_t row = 0; row < rows; ++row) {
    for (int i = 0; i < tile.segment_count; ++i) {
      const Segment& segment = tile.segments[i];
      copy_short(results + row * tile_pixels_ + segment.from, segment.length, to + segment.to);
    }
    to += geometry_.outputs();
  }
}

void Conv::multiply_blocks(const Tile& tile, int64_t image, BlockRange blocks) const {
  const int64_t size = weights_.block_size;
  const int64_t group = blocks.first / weights_.group_blocks();
  const int64_t group_channels = weights_.in_features / positions_;
  const int64_t channel = image * channels_ + group * group_channels;
  const float* x = copy_ == nullptr ? x_ : copy_;
  const Columns columns{x + channel * geometry_.channel_pixels() + tile.first_column,
                        places_.data(), tile.units, low_};
  const int64_t row = (blocks.first - group * weights_.group_blocks()) * size;
  const int64_t computed = (blocks.last - blocks.first) * size;
  const int64_t rows = std::min(computed, weights_.group_outputs() - row);
  const int64_t output = image * weights_.out_features + group * weights_.group_outputs() + row;
  float* to = y_ + output * geometry_.outputs();
  const auto multiply = slices_ ? kernel_.multiply_copied_columns : kernel_.multiply_columns;
  if (tile.whole && rows == computed) {
    multiply(weights_, bias_.data(), columns, blocks, to + tile.segments[0].to,
             geometry_.outputs());
    return;
  }
  alignas(64) float results[kMostResults];
  multiply(weights_, bias_.data(), columns, blocks, results, tile_pixels_);
  write(results, tile, rows, to);
}

void Conv::multiply(int64_t task) const noexcept {
  const int64_t together = rows_together_ / weights_.block_size;
  const int64_t steps = (weights_.block_count() + together - 1) / together;
  const int64_t part = task % parts_;
  const int64_t last = std::min(steps * (part + 1) / parts_ * together, weights_.block_count());
  const Tile tile = tile_at(task / parts_ % tiles_);
  for (int64_t block = steps * part / parts_ * together; block < last;) {
    const int64_t group_end =
        (block / weights_.group_blocks() + 1) * weights_.group_blocks();
    const BlockRange blocks{block, std::min({block + together, last, group_end})};
    multiply_blocks(tile, task / parts_ / tiles_, blocks);
    block = blocks.last;
  }
}

int64_t Conv::work() const {
  return images_ * tiles_ * tile_pixels_ * weights_.entry_count() * weights_.block_size;
}

}  // namespace onnxcomp::sparse
