// Floating point decides bytes here: only + - * / and the square root are used, which IEEE 754 rounds
// exactly, in a fixed order, and the build forbids fusing them.
#include "codec/row_fit.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "codec/row_context.h"
#include "codec/row_products.h"

namespace onnxcomp::codec::rans {
namespace {

constexpr int kTaps = 5;                  // of the prediction; the scale's are four and a constant
constexpr int64_t kMaxSamples = 1 << 14;  // enough for a few weights

// Sums of products for the least squares of one position.
struct Normal {
  double products[kTaps][kTaps] = {};
  double targets[kTaps] = {};
  double target_squares = 0;
  double count = 0;

  // The target in float; the products of taps come later, and are exact.
  void add_target(const Sample& taps, double target) {
    for (int a = 0; a < kTaps; ++a) targets[a] += taps.values[a] * target;
    target_squares += target * target;
    count += 1;
  }

  void take_products(const Products& sums) {
    for (int a = 0; a < kTaps; ++a)
      for (int b = 0; b <= a; ++b) products[a][b] = sums.of(a, b);
  }

  // Gaussian elimination; a little on the diagonal keeps taps that are always zero at zero.
  void solve(double* weights) const {
    double rows[kTaps][kTaps + 1];
    for (int a = 0; a < kTaps; ++a) {
      for (int b = 0; b < kTaps; ++b) rows[a][b] = a >= b ? products[a][b] : products[b][a];
      rows[a][a] = rows[a][a] * 1.0001 + 1e-3;
      rows[a][kTaps] = targets[a];
    }
    for (int a = 0; a < kTaps; ++a) {
      for (int b = a + 1; b < kTaps; ++b) {
        const double factor = rows[b][a] / rows[a][a];
        for (int c = a; c <= kTaps; ++c) rows[b][c] -= factor * rows[a][c];
      }
    }
    for (int a = kTaps - 1; a >= 0; --a) {
      double value = rows[a][kTaps];
      for (int b = a + 1; b < kTaps; ++b) value -= rows[a][b] * weights[b];
      weights[a] = value / rows[a][a];
    }
  }

  // The sum over all samples of the squared prediction.
  double explained(const double* weights) const {
    double sum = 0;
    for (int a = 0; a < kTaps; ++a) {
      for (int b = 0; b < kTaps; ++b) sum += weights[a] * weights[b] * (a >= b ? products[a][b] : products[b][a]);
    }
    return sum;
  }
};

struct Fit {
  double weights[kTaps];
};

int32_t rounded(double value, double largest) {
  return static_cast<int32_t>(std::floor(std::min(std::max(value, -largest), largest) + 0.5));
}

// Contexts of the sampled rows: what a code's neighbours are, in C order.
class Samples {
 public:
  Samples(const Source& source, const Header& header, int32_t center)
      : length_(source.geometry.row_length()), far_(far_of(source.geometry)) {
    const int64_t rows = source.geometry.rows;
    const int64_t wanted = std::max<int64_t>(1, kMaxSamples / length_);
    stride_ = std::max<int64_t>(1, rows / wanted);
    const std::vector<int8_t> contexts = symbol_contexts(header, center);
    const uint16_t* symbols = source.split.symbols.data();
    contexts_.resize(static_cast<size_t>(rows * length_));
    for (size_t i = 0; i < contexts_.size(); ++i) contexts_[i] = contexts[symbols[i]];
    for (size_t s = 0; s < contexts.size(); ++s)
      magnitude_ += int64_t{source.alphabet.counts[s]} * magnitude_of(contexts[s]);
  }

  double mean_magnitude() const {
    return static_cast<double>(magnitude_) / static_cast<double>(std::max<size_t>(contexts_.size(), 1));
  }
  int64_t length() const { return length_; }
  int64_t stride() const { return stride_; }
  const int8_t* row(int64_t r) const { return contexts_.data() + r * length_; }

  // The codes 1, 2, 3, 4 and far before, and the code.
  Sample taps(const int8_t* row, int64_t j) const {
    const auto before = [&](int64_t d) { return j >= d ? row[j - d] : 0; };
    return {before(1), before(2), before(3), before(4), before(far_), row[j]};
  }

 private:
  int64_t length_;
  int64_t far_;
  int64_t stride_ = 1;
  int64_t magnitude_ = 0;
  std::vector<int8_t> contexts_;
};

double predicted(const Sample& taps, const Fit& fit) {
  double sum = 0;
  for (int a = 0; a < kTaps; ++a) sum += taps.values[a] * fit.weights[a];
  return sum;
}

int32_t center_of(const Alphabet& alphabet) {
  uint64_t total = 0, sum = 0;
  for (int s = 0; s < alphabet.header.alphabet(); ++s) total += alphabet.counts[static_cast<size_t>(s)];
  int32_t center = 0;
  while (2 * (sum + alphabet.counts[static_cast<size_t>(center)]) < total)
    sum += alphabet.counts[static_cast<size_t>(center++)];
  return center;
}

std::vector<Normal> prediction_normals(const Source& source, const Samples& samples, size_t phases) {
  std::vector<Products> products(phases);
  std::vector<Normal> normals(phases);
  for (int64_t r = 0; r < source.geometry.rows; r += samples.stride()) {
    const int8_t* row = samples.row(r);
    size_t phase = 0;
    for (int64_t j = 0; j < samples.length(); ++j, phase = phase + 1 < phases ? phase + 1 : 0) {
      products[phase].add(samples.taps(row, j));
      normals[phase].count += 1;
    }
  }
  for (size_t p = 0; p < phases; ++p) {
    products[p].finish();
    normals[p].take_products(products[p]);
    for (int a = 0; a < kTaps; ++a) normals[p].targets[a] = products[p].of(a, kTaps);
    normals[p].target_squares = products[p].of(kTaps, kTaps);
  }
  return normals;
}

// The scale's taps need what the rows before say of a column: one walk over all groups.
std::vector<Normal> scale_normals(const Source& source, const Samples& samples, const Header& header,
                                  const RowModel& model, const std::vector<Fit>& fits) {
  const size_t phases = fits.size();
  std::vector<Normal> normals(phases);
  std::vector<Products> products(phases);
  std::vector<int32_t> columns(static_cast<size_t>(samples.length()), model.start_column);
  std::vector<int32_t> sums(columns.size(), 0);
  const int lanes = header.lanes();
  for (int64_t r = 0; r < source.geometry.rows; ++r) {
    const int8_t* row = samples.row(r);
    if (r % samples.stride() == 0) {
      int32_t magnitude = model.start_row;
      size_t phase = 0;
      for (int64_t j = 0; j < samples.length(); ++j, phase = phase + 1 < phases ? phase + 1 : 0) {
        const Sample taps = samples.taps(row, j);
        const double off = row[j] - predicted(taps, fits[phase]);
        const auto size = [&](int tap) { return magnitude_of(taps.values[tap]); };
        const Sample scale_taps = {size(0) + size(1) + size(2), size(4), magnitude >> kRowShift,
                                   columns[static_cast<size_t>(j)] >> kColumnShift, 1, 0};
        products[phase].add(scale_taps);
        normals[phase].add_target(scale_taps, std::fabs(off));
        magnitude += magnitude_of(row[j]) - (magnitude >> kRowMemory);
      }
    }
    for (size_t j = 0; j < sums.size(); ++j) sums[j] += magnitude_of(row[j]);
    if ((r + 1) % lanes != 0) continue;
    for (size_t j = 0; j < sums.size(); ++j) {
      columns[j] = (columns[j] >> 1) + sums[j] * (kLanes / lanes);
      sums[j] = 0;
    }
  }
  for (size_t p = 0; p < phases; ++p) {
    products[p].finish();
    normals[p].take_products(products[p]);
  }
  return normals;
}

void set_prediction(const std::vector<Normal>& normals, std::vector<Fit>* fits, RowModel* model) {
  double explained = 0, squares = 0, count = 0;
  for (size_t p = 0; p < normals.size(); ++p) {
    normals[p].solve((*fits)[p].weights);
    explained += normals[p].explained((*fits)[p].weights);
    squares += normals[p].target_squares;
    count += normals[p].count;
  }
  // Levels three quarters of the predictions' deviation apart, where predicting pays at all.
  model->mean_levels = explained <= 0.005 * squares ? 1 : explained <= 0.04 * squares ? 5 : 9;
  model->scale_levels = model->mean_levels == 1 ? 8 : model->mean_levels == 5 ? 6 : 4;
  if (model->mean_levels == 1) {
    for (Fit& fit : *fits) fit = {};
    return;
  }
  const double unit = 0.75 * std::sqrt(explained / count);
  for (size_t p = 0; p < normals.size(); ++p) {
    for (int a = 0; a < kTaps; ++a)
      model->weights[p].prediction[a] = rounded((*fits)[p].weights[a] * (1 << kMeanShift) / unit, 4096);
  }
}

void set_scale(const std::vector<Normal>& normals, RowModel* model) {
  std::vector<Fit> fits(normals.size());
  double sum = 0, squares = 0, count = 0;
  for (size_t p = 0; p < normals.size(); ++p) {
    normals[p].solve(fits[p].weights);
    squares += normals[p].explained(fits[p].weights);
    for (int a = 0; a < kTaps; ++a) sum += fits[p].weights[a] * normals[p].products[kTaps - 1][a];
    count += normals[p].count;
  }
  const double mean = sum / count;
  const double deviation = std::sqrt(std::max(squares / count - mean * mean, 1e-9));
  // Levels cover two deviations to either side.
  const double unit = 4 * deviation / model->scale_levels;
  for (size_t p = 0; p < normals.size(); ++p) {
    for (int a = 0; a < 4; ++a)
      model->weights[p].scale[a] = rounded(fits[p].weights[a] * (1 << kScaleShift) / unit, 4096);
    model->weights[p].bias = rounded(
        ((fits[p].weights[4] - mean) / unit + model->scale_levels / 2.0) * (1 << kScaleShift), 1 << 24);
  }
}

}  // namespace

RowModel fit_row_model(const Source& source, const Header& header, bool by_position) {
  const size_t phases = by_position ? static_cast<size_t>(source.geometry.kernel) : 1;
  RowModel model;
  model.center = center_of(source.alphabet);
  model.weights.resize(phases, PositionWeights{});
  const Samples samples(source, header, model.center);
  model.start_row = rounded(samples.mean_magnitude() * (1 << kRowMemory), kLargestContext << kRowMemory);
  model.start_column = rounded(samples.mean_magnitude() * 2 * kLanes, 2 * kLanes * kLargestContext);
  std::vector<Fit> fits(phases);
  set_prediction(prediction_normals(source, samples, phases), &fits, &model);
  set_scale(scale_normals(source, samples, header, model, fits), &model);
  return model;
}

}  // namespace onnxcomp::codec::rans
