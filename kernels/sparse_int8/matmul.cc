#include "sparse_int8/matmul.h"

#include <algorithm>
#include <cstring>

namespace onnxcomp::sparse_int8 {
namespace {

constexpr int64_t kQuadStride = kTileTokens * kQuad;
constexpr int64_t kSquare = 16;  // quads, or outputs, transposed together

// Pieces that all tasks need at once are this many at least, so that threads share them.
constexpr int64_t kPiecesWanted = 8;

}  // namespace

MatMul::MatMul(const Kernel& kernel, const Layer& layer, Scratch& scratch, const uint8_t* x,
               int64_t tokens, uint8_t* codes, float* results)
    : kernel_(kernel),
      layer_(layer),
      x_(x),
      tokens_(tokens),
      codes_(codes),
      results_(results),
      squares_((layer.weights().quad_count() + kSquare - 1) / kSquare),
      panel_bytes_(squares_ * kSquare * kQuadStride),
      parts_(layer.weights(), tile_count()),
      chunks_(std::clamp<int64_t>(kPiecesWanted / std::max<int64_t>(tile_count(), 1), 1, squares_)),
      pieces_(tile_count() * chunks_) {
  if (tokens == 0) return;
  places_.resize(static_cast<size_t>(layer.weights().quad_count()));
  int64_t place = 0;
  for (int64_t& quad : places_) {
    quad = place;
    place += kQuadStride;
  }
  panels_ = scratch.reserve(tile_count() * panel_bytes_);
}

int64_t MatMul::tokens_of(int64_t tile) const {
  return std::min(kTileTokens, tokens_ - tile * kTileTokens);
}

uint8_t* MatMul::panel(int64_t tile) const { return panels_ + tile * panel_bytes_; }

void MatMul::fill(int64_t piece) const {
  const int64_t features = layer_.weights().in_channels;
  const int64_t tile = piece / chunks_, chunk = piece % chunks_;
  constexpr int64_t kBytes = kSquare * kQuad;
  const int64_t last = std::min(squares_ * (chunk + 1) / chunks_ * kBytes, features);
  uint8_t staged[kLanes * kBytes];
  for (int64_t token = 0; token < tokens_of(tile); token += kLanes) {
    const int64_t tokens = std::min(kLanes, tokens_of(tile) - token);
    const uint8_t* x = x_ + (tile * kTileTokens + token) * features;
    uint8_t* to = panel(tile) + token * kQuad;
    for (int64_t first = squares_ * chunk / chunks_ * kBytes; first < last; first += kBytes) {
      const int64_t bytes = std::min(kBytes, features - first);
      const bool whole = tokens == kLanes && bytes == kBytes;
      if (!whole) {
        std::memset(staged, layer_.x_zero_point(), sizeof(staged));
        for (int64_t i = 0; i < tokens; ++i)
          std::memcpy(staged + i * kBytes, x + i * features + first, static_cast<size_t>(bytes));
      }
      kernel_.transpose_words(whole ? x + first : staged, whole ? features : kBytes,
                              to + first / kQuad * kQuadStride, kQuadStride);
    }
  }
}

// codes[rows, kTileColumns] -> Y[tokens, out_channels] at first_row
void MatMul::write(const uint8_t* codes, int64_t tile, int64_t first_row, int64_t rows) const {
  const int64_t width = layer_.weights().out_channels;
  const int64_t tokens = tokens_of(tile);
  uint8_t* y = codes_ + tile * kTileTokens * width + first_row;
  if (tokens == kTileTokens && rows == kSquare)
    return kernel_.transpose_bytes(codes, kTileColumns, y, width);
  uint8_t staged[kTileTokens * kSquare];
  kernel_.transpose_bytes(codes, kTileColumns, staged, kSquare);
  for (int64_t i = 0; i < tokens; ++i)
    std::memcpy(y + i * width, staged + i * kSquare, static_cast<size_t>(rows));
}

void MatMul::write(const float* sums, int64_t tile, int64_t first_row, int64_t rows) const {
  constexpr int64_t kFloat = sizeof(float);
  const int64_t width = layer_.weights().out_channels;
  for (int64_t token = 0; token < tokens_of(tile); token += kLanes) {
    const int64_t tokens = std::min(kLanes, tokens_of(tile) - token);
    float* y = results_ + (tile * kTileTokens + token) * width + first_row;
    const auto* from = reinterpret_cast<const uint8_t*>(sums + token);
    if (tokens == kLanes && rows == kSquare) {
      kernel_.transpose_words(from, kTileColumns * kFloat, reinterpret_cast<uint8_t*>(y),
                              width * kFloat);
      continue;
    }
    uint8_t staged[kLanes * kSquare * kFloat];
    kernel_.transpose_words(from, kTileColumns * kFloat, staged, kSquare * kFloat);
    for (int64_t i = 0; i < tokens; ++i)
      std::memcpy(y + i * width, staged + i * kSquare * kFloat, static_cast<size_t>(rows * kFloat));
  }
}

template <class Result, class Multiply>
void MatMul::multiply_tile(Multiply multiply, int64_t tile, BlockRange blocks) const {
  const PackedWeights& weights = layer_.weights();
  const int64_t vectors = (tokens_of(tile) + kLanes - 1) / kLanes;
  const Columns columns{panel(tile), places_.data(), kQuadStride, vectors};
  alignas(64) Result results[kTileRows * kTileColumns];
  for (int64_t block = blocks.first; block < blocks.last; block += parts_.blocks_together()) {
    const int64_t last = std::min(block + parts_.blocks_together(), blocks.last);
    multiply(weights, layer_.scaling(), columns, BlockRange{block, last}, results, kTileColumns);
    const int64_t first_row = block * weights.block_rows;
    const int64_t end = std::min(last * weights.block_rows, weights.out_channels);
    write(results, tile, first_row, end - first_row);
  }
}

void MatMul::run(int64_t task) const noexcept {
  const int64_t tile = task / parts_.count();
  pieces_.need(tile * chunks_, (tile + 1) * chunks_, [&](int64_t piece) { fill(piece); });
  const BlockRange blocks = parts_.blocks(task % parts_.count());
  if (codes_ != nullptr) {
    multiply_tile<uint8_t>(kernel_.multiply, tile, blocks);
  } else {
    multiply_tile<float>(kernel_.multiply_to_float, tile, blocks);
  }
}

int64_t MatMul::work() const {
  const PackedWeights& weights = layer_.weights();
  return tile_count() * kTileTokens * weights.entry_count() * weights.block_rows * kQuad;
}

}  // namespace onnxcomp::sparse_int8
