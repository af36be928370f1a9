// Which back end codes a chunk. Apart from payload.cc, so that a decoder needs no encoder.

#include "codec/cabac.h"
#include "codec/extremes.h"
#include "codec/lanes.h"
#include "codec/payload.h"
#include "codec/rans.h"
#include "codec/raw.h"

namespace onnxcomp::codec {
namespace {

constexpr size_t kWorthwhile = 20;  // cabac decodes 25 times as slowly: it has to save a 20th

}  // namespace

std::vector<uint8_t> encode(const int32_t* codes, Geometry geometry, const LaneKernel& kernel,
                            const EncodeOptions& options) {
  const int64_t count = geometry.count();
  if (count == 0) return raw::encode(codes, 0);
  switch (options.back_end) {
    case BackEnd::kRaw:
      return raw::encode(codes, count);
    case BackEnd::kRans:
      return rans::encode(codes, geometry, kernel, options.profile, options.prefer_speed);
    case BackEnd::kCabac:
      return cabac::encode(codes, geometry, options.profile);
    default:
      break;
  }
  const auto [smallest, largest] = extremes_of(codes, count);
  if (smallest == largest) return raw::encode(codes, count);
  std::vector<uint8_t> best = rans::encode(codes, geometry, kernel, kAnyProfile, options.prefer_speed);
  if (raw::encoded_size(smallest, largest, count) <= best.size()) best = raw::encode(codes, count);
  if (options.prefer_speed) return best;
  std::vector<uint8_t> adaptive = cabac::encode(codes, geometry, kAnyProfile);
  const size_t wanted = best.size() <= kSmallPayload ? 1 : best.size() / kWorthwhile;
  return adaptive.size() + wanted <= best.size() ? adaptive : best;
}

}  // namespace onnxcomp::codec
