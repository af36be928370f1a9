#pragma once

// Back end 1: range asymmetric numeral systems with static tables (J. Duda, arXiv:1311.2540), up to
// 32 interleaved decoders that share one sequence of 16-bit words (F. Giesen, arXiv:1402.3392).
// docs/codec.md specifies the payload.

#include <vector>

#include "codec/frequency_table.h"
#include "codec/geometry.h"
#include "codec/lanes.h"
#include "codec/status.h"

namespace onnxcomp::codec::rans {

enum class Profile : uint8_t { kTable = 0, kParametric = 1, kTiles = 2, kRows = 3 };
inline constexpr int kProfiles = 4;
inline constexpr int kMaxLowBits = 24;

// What every profile's header begins with.
struct Header {
  int lanes_log2 = 0;
  int resolution = kLargestResolution;
  int low_bits = 0;          // of each code, stored as they are
  int symbols = 0;           // with the escape
  bool escape = false;
  int escape_order = 0;      // of the Exp-Golomb code of an escaped code's distance
  size_t side_bytes = 0;     // of the escaped codes
  int64_t lowest = 0;        // what symbol 0 stands for

  int lanes() const noexcept { return 1 << lanes_log2; }
  int alphabet() const noexcept { return symbols - static_cast<int>(escape); }
};

// The shortest payload of this profile, or of any if it is negative; empty where the profile does not
// apply. Speed leaves out rows, which decode at half the speed. There is at least one code.
std::vector<uint8_t> encode(const int32_t* codes, Geometry geometry, const LaneKernel& kernel,
                            int profile, bool prefer_speed);

// Where decoded codes go. As soon as a block of them is there, and in the cache, they are scaled, and
// `finished` is told.
struct Sink {
  int32_t* codes;
  const float* scales = nullptr;  // null: codes stay
  int64_t scale_count = 0;        // 1 or the number of rows
  void (*finished)(void* context, int64_t begin, int64_t count) = nullptr;
  void* context = nullptr;
};

Status decode(Bytes payload, Geometry geometry, const LaneKernel& kernel, const Sink& sink);

}  // namespace onnxcomp::codec::rans
