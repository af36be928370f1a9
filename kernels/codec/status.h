#pragma once

#include <cstdint>

namespace onnxcomp::codec {

// What can be wrong with a payload. Decoders return it; nothing in this folder throws on bad input.
enum class Status : uint8_t {
  kOk,
  kBadGeometry,       // more codes than a chunk holds, or a negative dimension
  kUnknownBackEnd,
  kUnknownProfile,
  kTruncated,         // the payload ends too early
  kTrailingBytes,     // ... or goes on after its end
  kBadHeader,         // a field is out of its range
  kBadTable,          // frequencies do not sum to the resolution
  kBadEscape,         // an escaped code is not outside the alphabet, or there are too few or many
  kBadState,          // an arithmetic decoder does not end where its encoder began
};

const char* describe(Status status) noexcept;

}  // namespace onnxcomp::codec
