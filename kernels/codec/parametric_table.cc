#include "codec/parametric_table.h"

#include <algorithm>
#include <vector>

#include "codec/fixed_point.h"
#include "codec/frequency_table.h"

namespace onnxcomp::codec {
namespace {

constexpr int kUnit = 64;                           // sub-positions of a code
constexpr int kPoints[] = {-18, 18};               // of Gauss and Legendre, in a symbol's interval
constexpr int64_t kLargestPower = 40 * kOne;        // 2^-40 is nothing

// log2 with 16 fractional bits of every distance that is looked up.
const int64_t* distance_logarithms() {
  static const std::vector<int64_t> table = [] {
    std::vector<int64_t> logs(kUnit * (kMaxSymbols + kLargestMean / 16 + 1), 0);
    for (size_t d = 1; d < logs.size(); ++d) logs[d] = log2_fixed(d);
    return logs;
  }();
  return table.data();
}

}  // namespace

void gaussian_frequencies(const GaussianParameters& parameters, int alphabet, int slots,
                          uint16_t* frequency) {
  const int64_t* logs = distance_logarithms();
  const int64_t unit_log = 6 * kOne + parameters.spread * (kOne / 8);
  uint64_t weights[kMaxSymbols];
  uint64_t total = 0;
  int heaviest = 0;
  for (int s = 0; s < alphabet; ++s) {
    uint64_t weight = 0;
    for (const int point : kPoints) {
      const int distance = kUnit * s + point - kUnit / 16 * parameters.mean;
      const int64_t ratio = logs[distance < 0 ? -distance : distance] - unit_log;
      const int64_t exponent = std::clamp<int64_t>((ratio * parameters.shape) >> 3, -16 * kOne, 16 * kOne);
      const auto power = static_cast<int64_t>(exp2_fixed(exponent));
      weight += exp2_fixed(-std::min(power, kLargestPower));
    }
    weights[s] = weight;
    total += weight;
    if (weight > weights[heaviest]) heaviest = s;
  }
  const auto spare = static_cast<uint64_t>(slots - alphabet);
  int used = 0;
  for (int s = 0; s < alphabet; ++s) {
    frequency[s] = static_cast<uint16_t>(1 + (total == 0 ? 0 : weights[s] * spare / total));
    used += frequency[s];
  }
  frequency[heaviest] = static_cast<uint16_t>(frequency[heaviest] + slots - used);
}

GaussianParameters fit_gaussian(const uint32_t* counts, int alphabet, int slots, int resolution,
                                int shape, uint64_t* length) {
  uint64_t count = 0, sum = 0;
  for (int s = 0; s < alphabet; ++s) {
    count += counts[s];
    sum += static_cast<uint64_t>(s) * counts[s];
  }
  GaussianParameters best;
  *length = 0;
  best.shape = shape > 0 ? shape : 8;
  if (count == 0) return best;
  best.mean = static_cast<int>(16 * sum / count);
  uint64_t deviation = 1;  // 256 times the summed distance from the mean
  for (int s = 0; s < alphabet; ++s)
    deviation += counts[s] * static_cast<uint64_t>(std::max(std::abs(16 * s - best.mean), 4)) * 16;
  best.spread = static_cast<int>((log2_fixed(deviation) - log2_fixed(256 * count)) / (kOne / 8));
  uint16_t frequency[kMaxSymbols];
  // The descent comes back to where it was.
  struct Known {
    GaussianParameters parameters;
    uint64_t length;
  };
  std::vector<Known> known;
  const auto length_of = [&](const GaussianParameters& parameters) {
    for (const Known& one : known) {
      const GaussianParameters& tried = one.parameters;
      if (tried.mean == parameters.mean && tried.spread == parameters.spread && tried.shape == parameters.shape)
        return one.length;
    }
    gaussian_frequencies(parameters, alphabet, slots, frequency);
    known.push_back({parameters, coded_length(counts, frequency, alphabet, resolution)});
    return known.back().length;
  };
  *length = length_of(best);
  // Coordinate descent with halving steps; the length is close to convex in each parameter.
  for (int step = 2; step > 0;) {
    bool better = false;
    for (int which = 0; which < (shape > 0 ? 2 : 3); ++which) {
      for (const int change : {-step, step}) {
        GaussianParameters trial = best;
        int& changed = which == 0 ? trial.spread : which == 1 ? trial.mean : trial.shape;
        changed += change;
        if (std::abs(trial.spread) > kLargestSpread || std::abs(trial.mean) > kLargestMean ||
            trial.shape < kSmallestShape || trial.shape > kLargestShape)
          continue;
        const uint64_t trial_length = length_of(trial);
        if (trial_length < *length) {
          *length = trial_length;
          best = trial;
          better = true;
        }
      }
    }
    if (!better) step /= 2;
  }
  return best;
}

}  // namespace onnxcomp::codec
