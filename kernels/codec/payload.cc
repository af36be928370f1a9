#include "codec/payload.h"

#include <algorithm>

#include "codec/cabac.h"
#include "codec/lanes.h"
#include "codec/rans.h"
#include "codec/raw.h"

namespace onnxcomp::codec {
namespace {

constexpr size_t kWorthwhile = 20;  // cabac decodes 30 times as slowly: it has to save a 20th
constexpr int64_t kBlock = 4096;    // numbers that stay in the first cache

}  // namespace

Status decode_into(Bytes payload, Geometry geometry, const LaneKernel& kernel, const rans::Sink& sink) {
  if (!geometry.valid()) return Status::kBadGeometry;
  if (payload.size < 2) return Status::kTruncated;
  const int64_t count = geometry.count();
  Status status = Status::kUnknownBackEnd;
  switch (static_cast<BackEnd>(payload.data[0])) {
    case BackEnd::kRans:  // scales block by block
      return count == 0 ? Status::kBadGeometry : rans::decode(payload, geometry, kernel, sink);
    case BackEnd::kRaw:
      status = raw::decode(payload, count, kernel, sink.codes);
      break;
    case BackEnd::kCabac:
      if (count == 0) return Status::kBadGeometry;
      status = cabac::decode(payload, geometry, sink.codes);
      break;
    default:
      return status;
  }
  if (status != Status::kOk) return status;
  const int64_t per_scale = sink.scale_count == 1 ? count : geometry.row_length();
  for (int64_t at = 0, row = 0; at < count && sink.scales != nullptr; at += per_scale, ++row)
    kernel.scale_in_place(sink.codes + at, per_scale, sink.scales[row]);
  for (int64_t at = 0; at < count && sink.finished != nullptr; at += kBlock)
    sink.finished(sink.context, at, std::min(kBlock, count - at));
  return status;
}

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
  const auto [smallest, largest] = std::minmax_element(codes, codes + count);
  if (*smallest == *largest) return raw::encode(codes, count);
  std::vector<uint8_t> best = rans::encode(codes, geometry, kernel, kAnyProfile, options.prefer_speed);
  if (raw::encoded_size(*smallest, *largest, count) <= best.size()) best = raw::encode(codes, count);
  if (options.prefer_speed) return best;
  std::vector<uint8_t> adaptive = cabac::encode(codes, geometry, kAnyProfile);
  const size_t wanted = best.size() <= kSmallPayload ? 1 : best.size() / kWorthwhile;
  return adaptive.size() + wanted <= best.size() ? adaptive : best;
}

Status decode(Bytes payload, Geometry geometry, const LaneKernel& kernel, int32_t* codes) {
  return decode_into(payload, geometry, kernel, {codes, nullptr, 0});
}

Status decode_scaled(Bytes payload, Geometry geometry, const LaneKernel& kernel, const float* scales,
                     int64_t scale_count, float* out) {
  if (scale_count != 1 && scale_count != geometry.rows) return Status::kBadGeometry;
  // Codes and products have the same size: a block is decoded in place and then scaled.
  return decode_into(payload, geometry, kernel, {reinterpret_cast<int32_t*>(out), scales, scale_count});
}

}  // namespace onnxcomp::codec
