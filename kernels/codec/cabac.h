#pragma once

// Back end 2: adaptive binary arithmetic coding with contexts from coded neighbours. The profile byte
// tells where the neighbours' weights are.

#include <vector>

#include "codec/geometry.h"
#include "codec/status.h"

namespace onnxcomp::codec::cabac {

enum class Profile : uint8_t { kPlain = 0, kShared = 1, kPositions = 2 };
inline constexpr int kProfiles = 3;

// The shortest payload of a profile, or of all when `profile` is negative; the same bytes everywhere.
// Empty when a profile cannot be had. Needs codes.
std::vector<uint8_t> encode(const int32_t* codes, Geometry geometry, int profile);

// Writes geometry.count() codes, whatever the payload holds.
Status decode(Bytes payload, Geometry geometry, int32_t* codes);

}  // namespace onnxcomp::codec::cabac
