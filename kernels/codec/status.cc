#include "codec/status.h"

namespace onnxcomp::codec {

const char* describe(Status status) noexcept {
  switch (status) {
    case Status::kOk:
      return "intact";
    case Status::kBadGeometry:
      return "its shape is not that of a chunk";
    case Status::kUnknownBackEnd:
      return "its back end is unknown";
    case Status::kUnknownProfile:
      return "its profile is unknown";
    case Status::kTruncated:
      return "it ends too early";
    case Status::kTrailingBytes:
      return "bytes are left over at its end";
    case Status::kBadHeader:
      return "a field of its header is out of range";
    case Status::kBadTable:
      return "its frequencies do not sum to the resolution";
    case Status::kBadEscape:
      return "its escaped codes do not fit";
    case Status::kBadState:
      return "the decoder's final state is not the encoder's first";
  }
  return "unknown status";
}

}  // namespace onnxcomp::codec
