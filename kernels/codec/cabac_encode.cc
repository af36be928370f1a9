#include <algorithm>

#include "codec/cabac.h"
#include "codec/cabac_stream.h"

namespace onnxcomp::codec::cabac {
namespace {

constexpr int64_t kTried = int64_t{1} << 14;        // smaller chunks are coded in every way
constexpr uint32_t kCounts = 1 << 16;

// The most frequent code where codes are near each other: the peak of the distribution.
int32_t choose_center(const int32_t* codes, int64_t count) {
  const auto [smallest, largest] = std::minmax_element(codes, codes + count);
  const int32_t low = *smallest;
  const uint32_t range = static_cast<uint32_t>(*largest) - static_cast<uint32_t>(low);
  if (range >= kCounts) return 0;
  std::vector<uint32_t> counts(range + 1, 0);
  for (int64_t i = 0; i < count; ++i) ++counts[static_cast<uint32_t>(codes[i]) - static_cast<uint32_t>(low)];
  const auto peak = std::max_element(counts.begin(), counts.end());
  // Zero unless another code is clearly the peak: noise moves it by one.
  const int64_t zero = -int64_t{low};
  const bool inside = zero >= 0 && zero <= range;
  if (inside && uint64_t{counts[static_cast<size_t>(zero)]} * 8 >= uint64_t{*peak} * 7) return 0;
  return static_cast<int32_t>(static_cast<uint32_t>(low) + static_cast<uint32_t>(peak - counts.begin()));
}

uint64_t distance(int32_t code, int32_t center) {
  const auto difference = static_cast<int32_t>(static_cast<uint32_t>(code) - static_cast<uint32_t>(center));
  return difference < 0 ? 0 - static_cast<uint64_t>(int64_t{difference}) : static_cast<uint64_t>(difference);
}

// The tree holds magnitudes up to about three times the mean of those that are not zero.
int choose_depth(const int32_t* codes, int64_t count, int32_t center) {
  uint64_t sum = 0, others = 0;  // at most 2^51
  for (int64_t i = 0; i < count; ++i) {
    const uint64_t magnitude = distance(codes[i], center);
    sum += magnitude;
    others += magnitude != 0;
  }
  int depth = 0;
  while (depth < kMaxDepth && (uint64_t{5} << depth) * others + 6 * others < 16 * sum) ++depth;
  return depth;
}

int32_t mean_magnitude(const int32_t* codes, int64_t count, const Model& model) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < count; ++i)
    sum += std::min(distance(codes[i], model.center), static_cast<uint64_t>(model.clip()));
  return static_cast<int32_t>((sum * 32 + static_cast<uint64_t>(count) / 2) / static_cast<uint64_t>(count));
}

std::vector<uint8_t> encode_model(const int32_t* codes, Geometry geometry, const Model& model) {
  BitWriter writer;
  writer.write(2, 8);
  writer.write(static_cast<uint32_t>(model.profile), 8);
  write_model(model, &writer);
  Stream<Encoder> stream(Encoder(), model, geometry);
  code_all(&stream, model, geometry, codes);
  std::vector<uint8_t> payload = writer.take();
  const std::vector<uint8_t> body = stream.coder.finish();
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
  model.center = choose_center(codes, count);
  model.depth = choose_depth(codes, count, model.center);
  const int32_t start = mean_magnitude(codes, count, model);
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
