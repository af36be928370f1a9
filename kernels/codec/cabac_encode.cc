#include <algorithm>
#include <utility>

#include "codec/cabac.h"
#include "codec/cabac_encoder.h"
#include "codec/extremes.h"

namespace onnxcomp::codec::cabac {
namespace {

constexpr int64_t kTried = int64_t{1} << 14;  // smaller chunks are coded in every way
constexpr uint32_t kCounts = 1 << 16;

uint64_t distance(int32_t code, int32_t center) {
  const auto difference = static_cast<int32_t>(static_cast<uint32_t>(code) - static_cast<uint32_t>(center));
  return difference < 0 ? 0 - static_cast<uint64_t>(int64_t{difference}) : static_cast<uint64_t>(difference);
}

// How often each code comes, where codes are near each other: one look at them is enough.
class Histogram {
 public:
  Histogram(const int32_t* codes, int64_t count) : codes_(codes), count_(count) {
    const Extremes extremes = extremes_of(codes, count);
    low_ = extremes.smallest;
    const uint32_t range = static_cast<uint32_t>(extremes.largest) - static_cast<uint32_t>(low_);
    if (range >= kCounts) return;
    // Neighbours are often alike, and a count waits for the one before: there are some of each.
    constexpr int kTables = 4;
    std::vector<uint32_t> tables[kTables];
    for (auto& table : tables) table.assign(range + 1, 0);
    for (int64_t i = 0; i < count; ++i)
      ++tables[i % kTables][static_cast<uint32_t>(codes[i]) - static_cast<uint32_t>(low_)];
    for (int t = 1; t < kTables; ++t)
      for (size_t i = 0; i <= range; ++i) tables[0][i] += tables[t][i];
    counts_ = std::move(tables[0]);
  }

  // The most frequent code where codes are near each other: the peak of the distribution.
  int32_t choose_center() const {
    if (counts_.empty()) return 0;
    const auto peak = std::max_element(counts_.begin(), counts_.end());
    // Zero unless another code is clearly the peak: noise moves it by one.
    const int64_t zero = -int64_t{low_};
    const bool inside = zero >= 0 && zero < static_cast<int64_t>(counts_.size());
    if (inside && uint64_t{counts_[static_cast<size_t>(zero)]} * 8 >= uint64_t{*peak} * 7) return 0;
    return code_of(static_cast<size_t>(peak - counts_.begin()));
  }

  // The sum over all codes of value(distance from the center).
  template <class Value>
  uint64_t sum(int32_t center, const Value& value) const {
    uint64_t sum = 0;
    for (size_t i = 0; i < counts_.size(); ++i) sum += counts_[i] * value(distance(code_of(i), center));
    if (!counts_.empty()) return sum;
    for (int64_t i = 0; i < count_; ++i) sum += value(distance(codes_[i], center));
    return sum;
  }

 private:
  int32_t code_of(size_t index) const {
    return static_cast<int32_t>(static_cast<uint32_t>(low_) + static_cast<uint32_t>(index));
  }

  const int32_t* const codes_;
  const int64_t count_;
  int32_t low_;
  std::vector<uint32_t> counts_;  // empty where codes are far apart
};

// The tree holds magnitudes up to about three times the mean of those that are not zero.
int choose_depth(const Histogram& histogram, int32_t center) {
  const uint64_t sum = histogram.sum(center, [](uint64_t magnitude) { return magnitude; });  // at most 2^51
  const uint64_t others = histogram.sum(center, [](uint64_t magnitude) { return uint64_t{magnitude != 0}; });
  int depth = 0;
  while (depth < kMaxDepth && (uint64_t{5} << depth) * others + 6 * others < 16 * sum) ++depth;
  return depth;
}

int32_t mean_magnitude(const Histogram& histogram, int64_t count, const Model& model) {
  const auto clip = static_cast<uint64_t>(model.clip());
  const uint64_t sum = histogram.sum(model.center, [clip](uint64_t magnitude) { return std::min(magnitude, clip); });
  return static_cast<int32_t>((sum * 32 + static_cast<uint64_t>(count) / 2) / static_cast<uint64_t>(count));
}

std::vector<uint8_t> encode_model(const int32_t* codes, Geometry geometry, const Model& model) {
  BitWriter writer;
  writer.write(2, 8);
  writer.write(static_cast<uint32_t>(model.profile), 8);
  write_model(model, &writer);
  Encoder encoder(model, geometry, codes);
  with_depth(model.depth, &encoder);
  std::vector<uint8_t> payload = writer.take();
  const std::vector<uint8_t> body = encoder.finish();
  payload.insert(payload.end(), body.begin(), body.end());
  return payload;
}

// What is tried of a profile: levels of scale and of mean.
struct Levels {
  Profile profile;
  int scale;
  int mean;
};

std::vector<Levels> candidates(Geometry geometry, int profile) {
  const bool positions = geometry.kernel > 1 && geometry.kernel <= kMaxPositions;
  const bool large = geometry.count() >= kTried;
  if (profile < 0 && large) return {{positions ? Profile::kPositions : Profile::kShared, 8, 5}};
  const Levels all[] = {{Profile::kPlain, 1, 1},
                        {Profile::kShared, 3, 3},
                        {Profile::kShared, 8, 5},
                        {Profile::kPositions, large ? 8 : 6, 5}};
  std::vector<Levels> tried;
  for (const Levels& levels : all) {
    const bool sensible = positions || levels.profile != Profile::kPositions;
    if (profile < 0 ? sensible : static_cast<int>(levels.profile) == profile) tried.push_back(levels);
  }
  return tried;
}

}  // namespace

std::vector<uint8_t> encode(const int32_t* codes, Geometry geometry, int profile) {
  const int64_t count = geometry.count();
  Model model;
  const Histogram histogram(codes, count);
  model.center = histogram.choose_center();
  model.depth = choose_depth(histogram, model.center);
  const int32_t start = mean_magnitude(histogram, count, model);
  std::vector<uint8_t> best;
  for (const Levels& levels : candidates(geometry, profile)) {
    if (positions_of(levels.profile, geometry) > kMaxPositions) continue;
    model.profile = levels.profile;
    model.scale_levels = levels.scale;
    model.mean_levels = levels.mean;
    model.start = levels.profile == Profile::kPlain ? 0 : start;
    model.weights.assign(1, Neighbours{});
    if (levels.profile != Profile::kPlain) fit_neighbours(codes, geometry, &model);
    prepare(&model);
    std::vector<uint8_t> payload = encode_model(codes, geometry, model);
    if (best.empty() || payload.size() < best.size()) best = std::move(payload);
  }
  return best;
}

}  // namespace onnxcomp::codec::cabac
