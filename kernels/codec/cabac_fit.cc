// Least squares on the neighbours: of codes, which gives the side they lean to, and of magnitudes, which
// gives the scale. Sums are integers; CMakeLists.txt forbids fused operations, so all processors agree.

#include <algorithm>
#include <array>
#include <cmath>

#include "codec/cabac_contexts.h"

namespace onnxcomp::codec::cabac {
namespace {

constexpr int kMeans = 5;
constexpr int kScales = 7;  // with the bias
constexpr int64_t kSampled = int64_t{1} << 16;
constexpr double kLevelsOfMean = 2;  // sides a mean magnitude is apart
constexpr double kSpan = 3;          // mean magnitudes that all levels of scale cover

template <int N>
struct Sums {
  int64_t products[N][N];
  int64_t targets[N];

  void add(const int32_t (&features)[N], int32_t target) {
    for (int i = 0; i < N; ++i) {
      targets[i] += int64_t{features[i]} * target;
      for (int j = 0; j <= i; ++j) products[i][j] += int64_t{features[i]} * features[j];
    }
  }
};

// Gauss on the normal equations, with a ridge that keeps them regular.
template <int N>
void solve(const Sums<N>& sums, double (&x)[N]) {
  double a[N][N + 1];
  for (int i = 0; i < N; ++i) {
    for (int j = 0; j < N; ++j) a[i][j] = static_cast<double>(sums.products[std::max(i, j)][std::min(i, j)]);
    a[i][i] = a[i][i] + a[i][i] / 1024 + 1;
    a[i][N] = static_cast<double>(sums.targets[i]);
  }
  for (int i = 0; i < N; ++i)
    for (int j = i + 1; j < N; ++j) {
      const double factor = a[j][i] / a[i][i];
      for (int k = i; k <= N; ++k) a[j][k] -= factor * a[i][k];
    }
  for (int i = N - 1; i >= 0; --i) {
    x[i] = a[i][N];
    for (int k = i + 1; k < N; ++k) x[i] -= a[i][k] * x[k];
    x[i] /= a[i][i];
  }
}

struct Fit {
  Sums<kMeans> mean = {};
  Sums<kScales> scale = {};
};

// Sums at every position, over evenly spread groups of rows.
std::vector<Fit> accumulate(const int32_t* codes, Geometry geometry, const Model& model) {
  const int64_t length = geometry.row_length(), far = far_of(geometry);
  const auto positions = static_cast<size_t>(positions_of(model.profile, geometry));
  const int64_t stride = (geometry.count() + kSampled - 1) / kSampled;
  const int64_t group = std::max<int64_t>(1, std::min<int64_t>(8, geometry.rows / (4 * stride)));
  std::vector<Fit> fits(positions);
  std::vector<int32_t> recent(static_cast<size_t>(length + far), 0);
  std::vector<int32_t> columns(static_cast<size_t>(length), model.start >> (kRowMemory - kColumnMemory));
  for (int64_t r = 0; r < geometry.rows; ++r) {
    if (r / group % stride != 0) continue;
    int32_t before[3] = {0, 0, 0}, row = model.start;
    size_t position = 0;
    for (int64_t c = 0; c < length; ++c) {
      int32_t* const here = recent.data() + far + c;
      int32_t& column = columns[static_cast<size_t>(c)];
      const auto difference =
          static_cast<int32_t>(static_cast<uint32_t>(codes[r * length + c]) - static_cast<uint32_t>(model.center));
      const int32_t code = clamped(difference, -model.clip(), model.clip()), magnitude = magnitude_of(code);
      const int32_t of_far = here[-far];
      fits[position].mean.add({before[0], before[1], before[2], of_far, *here}, code);
      fits[position].scale.add({32 * magnitude_of(before[0]), 32 * magnitude_of(before[1]),
                                32 * magnitude_of(before[2]), 32 * magnitude_of(of_far), row, 4 * column, 32},
                               magnitude);
      before[2] = before[1];
      before[1] = before[0];
      before[0] = code;
      row += magnitude - (row >> kRowMemory);
      position = position + 1 < positions ? position + 1 : 0;
      *here = code;
      column += magnitude - (column >> kColumnMemory);
    }
  }
  return fits;
}

// The largest shift at which all weights times 2^shift have eight bits.
int choose_shift(double largest) {
  int shift = 15;
  while (shift > 0 && largest * (1 << shift) > 127) --shift;
  return shift;
}

int32_t rounded(double value, int32_t limit) {
  const double whole = std::floor(value + 0.5);
  return static_cast<int32_t>(std::max<double>(-limit, std::min<double>(limit, whole)));
}

}  // namespace

void fit_neighbours(const int32_t* codes, Geometry geometry, Model* model) {
  const std::vector<Fit> fits = accumulate(codes, geometry, *model);
  const double mean_magnitude = std::max<int32_t>(model->start, 1) / 32.0;
  std::vector<std::array<double, kMeans>> means(fits.size());
  std::vector<std::array<double, kScales>> scales(fits.size());
  double largest_mean = 0, largest_scale = 0;
  for (size_t p = 0; p < fits.size(); ++p) {
    double mean[kMeans], scale[kScales];
    solve(fits[p].mean, mean);
    solve(fits[p].scale, scale);
    for (int i = 0; i < kMeans; ++i) {
      means[p][static_cast<size_t>(i)] = mean[i] * kLevelsOfMean / mean_magnitude;
      largest_mean = std::max(largest_mean, std::fabs(means[p][static_cast<size_t>(i)]));
    }
    for (int i = 0; i < kScales; ++i) {
      const double weight = scale[i] * 32 * model->scale_levels / (kSpan * mean_magnitude);
      scales[p][static_cast<size_t>(i)] = weight;
      if (i + 1 < kScales) largest_scale = std::max(largest_scale, std::fabs(weight));
    }
  }
  model->mean_shift = choose_shift(largest_mean);
  model->scale_shift = choose_shift(largest_scale);
  model->weights.assign(fits.size(), Neighbours{});
  for (size_t p = 0; p < fits.size(); ++p) {
    Neighbours& weights = model->weights[p];
    for (size_t i = 0; i < kMeans; ++i) weights.mean[i] = rounded(means[p][i] * (1 << model->mean_shift), 127);
    for (size_t i = 0; i + 1 < kScales; ++i)
      weights.scale[i] = rounded(scales[p][i] * (1 << model->scale_shift), 127);
    weights.bias = rounded(scales[p][kScales - 1] * (1 << model->scale_shift), 8191);
  }
}

}  // namespace onnxcomp::codec::cabac
