#pragma once

// A payload is one chunk of codes: byte 0 names the back end, byte 1 its profile, the rest is the
// back end's. docs/codec.md specifies every bit.

#include <cstddef>
#include <cstdint>
#include <vector>

#include "codec/geometry.h"
#include "codec/status.h"

namespace onnxcomp::codec {

enum class BackEnd : uint8_t { kRaw = 0, kRans = 1, kCabac = 2, kAuto = 255 };

// `profile` is a back end's own number; kAnyProfile lets it choose the shortest that is worth its time.
inline constexpr int kAnyProfile = -1;

// Bytes of a payload that any decoder is quick with: there every byte saved counts.
inline constexpr size_t kSmallPayload = size_t{1} << 14;

struct EncodeOptions {
  BackEnd back_end = BackEnd::kAuto;
  int profile = kAnyProfile;
  bool prefer_speed = false;  // leaves out what decodes slowly
};

struct LaneKernel;  // lanes.h: what an instruction set does
namespace rans {
struct Sink;  // rans.h: where codes go
}

// A payload from which `decode` gives the same codes back, the same whatever the kernel; empty when
// these codes cannot have the profile asked for. Needs geometry.valid().
std::vector<uint8_t> encode(const int32_t* codes, Geometry geometry, const LaneKernel& kernel,
                            const EncodeOptions& options);

// Writes geometry.count() codes, whatever the payload holds; on an error they are meaningless.
Status decode(Bytes payload, Geometry geometry, const LaneKernel& kernel, int32_t* codes);

// Also tells `sink` of every block, in C order.
Status decode_into(Bytes payload, Geometry geometry, const LaneKernel& kernel, const rans::Sink& sink);

// out[row, ...] = scales[row or 0] * code as float32 products, without an array of codes.
Status decode_scaled(Bytes payload, Geometry geometry, const LaneKernel& kernel, const float* scales,
                     int64_t scale_count, float* out);

}  // namespace onnxcomp::codec
