#include "sparse/matmul.h"

#include <algorithm>

namespace onnxcomp::sparse {
namespace {

// Enough tasks that a few threads share them evenly, few enough that starting one costs nothing.
constexpr int64_t kTasksWanted = 32;

// Full ones: padding would take longer than panels of kPanelTokens.
int64_t count_broad_panels(const PackedWeights& weights, int64_t tokens) {
  return weights.block_size == 1 ? tokens / kBroadColumns : 0;
}

int64_t count_panels(int64_t tokens) {
  const int64_t rest = tokens % kPanelTokens;
  return tokens / kPanelTokens + (rest >= kSmallestPanel ? 1 : 0);
}

}  // namespace

MatMul::MatMul(const Kernel& kernel, const PackedWeights& weights, const float* bias,
               Scratch& scratch, const float* x, int64_t tokens, float* y)
    : kernel_(kernel),
      weights_(weights),
      bias_(bias),
      x_(x),
      tokens_(tokens),
      y_(y),
      broad_count_(count_broad_panels(weights, tokens)),
      panel_count_(broad_count_ + count_panels(tokens - broad_count_ * kBroadColumns)),
      tasks_per_group_(1),
      fillings_(panel_count_) {
  if (tokens == 0) return;
  tasks_per_group_ = std::clamp<int64_t>(kTasksWanted / group_count(), 1, weights.tile_count());
  if (panel_count_ == 0) return;
  const int64_t floats = first_token(panel_count_) * weights.in_features;
  constexpr int64_t kFloat = sizeof(float);
  panels_ = reinterpret_cast<float*>(scratch.reserve(floats * kFloat));
}

int64_t MatMul::group_count() const {
  const int64_t rest = tokens_ - broad_count_ * kBroadColumns;
  return broad_count_ + (rest + kPanelTokens - 1) / kPanelTokens;
}

int64_t MatMul::first_token(int64_t group) const {
  const int64_t broad = std::min(group, broad_count_);
  return broad * kBroadColumns + (group - broad) * kPanelTokens;
}

int64_t MatMul::tokens_of(int64_t group) const {
  const int64_t most = group < broad_count_ ? kBroadColumns : kPanelTokens;
  return std::min(most, tokens_ - first_token(group));
}

float* MatMul::panel(int64_t group) const {
  return panels_ + first_token(group) * weights_.in_features;
}

void MatMul::fill(int64_t index) const noexcept {
  const auto fill = index < broad_count_ ? kernel_.fill_broad_panel : kernel_.fill_panel;
  fill(x_ + first_token(index) * weights_.in_features, tokens_of(index), weights_.in_features,
       panel(index));
}

void MatMul::run(int64_t task) const noexcept {
  const int64_t group = task / tasks_per_group_;
  const int64_t part = task % tasks_per_group_;
  const int64_t tiles = weights_.tile_count();
  const TileRange range{tiles * part / tasks_per_group_, tiles * (part + 1) / tasks_per_group_};
  float* y = y_ + first_token(group) * weights_.out_features;
  if (group < panel_count_) {
    fillings_.need(group, group + 1, [&](int64_t index) { fill(index); });
    const bool broad = group < broad_count_;
    const auto multiply = broad ? kernel_.multiply_broad_panel : kernel_.multiply_panel;
    multiply(weights_, bias_, panel(group), tokens_of(group), range, y);
    return;
  }
  const float* x = x_ + first_token(group) * weights_.in_features;
  for (int64_t token = 0; token < tokens_of(group); ++token) {
    kernel_.multiply_row(weights_, bias_, x + token * weights_.in_features, range,
                         y + token * weights_.out_features);
  }
}

int64_t MatMul::work() const {
  const int64_t rows = panel_count_ < group_count() ? tokens_of(panel_count_) : 0;
  return (first_token(panel_count_) + rows) * weights_.entry_count() * weights_.block_size;
}

}  // namespace onnxcomp::sparse
