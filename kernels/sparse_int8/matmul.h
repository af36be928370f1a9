#pragma once

#include <cstdint>
#include <vector>

#include "cpu/pieces.h"
#include "cpu/scratch.h"
#include "sparse_int8/layer.h"
#include "sparse_int8/output_parts.h"

namespace onnxcomp::sparse_int8 {

// Tokens (rows of X) computed together. More of them do not fit the caches with all they read.
inline constexpr int64_t kTileTokens = kTransposedColumns;

// Y[tokens, out_channels] = scaled(X[tokens, in_channels] W^T), cut into tasks, run in any
// order and on any threads; the result does not depend on them. Tasks never throw.
class MatMul {
 public:
  // `layer` has one position and one group. Exactly one of `codes` and `results` is given, and has
  // room for Y. X is transposed into `scratch`; throws std::bad_alloc when there is no room for it.
  MatMul(const Kernel& kernel, const Layer& layer, Scratch& scratch, const uint8_t* x,
         int64_t tokens, uint8_t* codes, float* results);

  int64_t task_count() const { return tile_count() * parts_.count(); }
  void run(int64_t task) const noexcept;

  // Multiply-adds, padding included: whether threads are worth waking.
  int64_t work() const;

 private:
  int64_t tile_count() const { return (tokens_ + kTileTokens - 1) / kTileTokens; }
  int64_t tokens_of(int64_t tile) const;
  uint8_t* panel(int64_t tile) const;
  void fill(int64_t piece) const;
  void write(const uint8_t* codes, int64_t tile, int64_t first_row, int64_t rows) const;
  void write(const float* sums, int64_t tile, int64_t first_row, int64_t rows) const;
  template <class Result, class Multiply>
  void multiply_tile(Multiply multiply, int64_t tile, BlockRange blocks) const;

  const Kernel& kernel_;
  const Layer& layer_;
  const uint8_t* x_;
  int64_t tokens_;
  uint8_t* codes_;
  float* results_;
  int64_t squares_;  // of a panel
  int64_t panel_bytes_;
  OutputParts parts_;
  int64_t chunks_;     // of its squares
  Pieces pieces_;      // [tiles, chunks]
  std::vector<int64_t> places_;
  uint8_t* panels_ = nullptr;
};

}  // namespace onnxcomp::sparse_int8
