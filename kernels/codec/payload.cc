#include "codec/payload.h"

#include <algorithm>

#include "codec/cabac.h"
#include "codec/lanes.h"
#include "codec/rans.h"
#include "codec/raw.h"

namespace onnxcomp::codec {
namespace {

constexpr int64_t kBlock = 4096;  // numbers that stay in the first cache

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
