#pragma once

#include <cstdint>
#include <vector>

#include "cpu/pieces.h"
#include "cpu/scratch.h"
#include "sparse/kernels.h"

namespace onnxcomp::sparse {

// A single token alone is faster as a row; from two on a panel is, padding and all.
inline constexpr int64_t kSmallestPanel = 2;

// The kernels this processor runs, best first; the last one is always "portable".
const std::vector<const Kernel*>& available_kernels();

// The kernel of that name, "auto" for the best; null if it is unknown or this processor lacks it.
const Kernel* find_kernel(const char* isa);

// Y[tokens, out_features] = X[tokens, in_features] W + bias, cut into tasks, run in any
// order and on any threads; the result does not depend on them. Tasks never throw.
class MatMul {
 public:
  // X is transposed into `scratch`; throws std::bad_alloc when there is no room for it.
  MatMul(const Kernel& kernel, const PackedWeights& weights, const float* bias, Scratch& scratch,
         const float* x, int64_t tokens, float* y);

  int64_t task_count() const { return group_count() * tasks_per_group_; }
  void run(int64_t task) const noexcept;

  // Multiply-adds, padding included: whether threads are worth waking.
  int64_t work() const;

 private:
  // Groups of kBroadColumns tokens, then of up to kPanelTokens; the last may be too small to be a panel.
  int64_t group_count() const;
  int64_t first_token(int64_t group) const;
  int64_t tokens_of(int64_t group) const;
  float* panel(int64_t group) const;
  void fill(int64_t index) const noexcept;

  const Kernel& kernel_;
  const PackedWeights& weights_;
  const float* bias_;
  const float* x_;
  int64_t tokens_;
  float* y_;
  int64_t broad_count_;
  int64_t panel_count_;  // the broad ones and the others
  int64_t tasks_per_group_;
  Pieces fillings_;  // of the panels
  float* panels_ = nullptr;
};

}  // namespace onnxcomp::sparse
