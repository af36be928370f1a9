#include "zstd/status.h"

namespace onnxcomp::zstd {

const char* describe(Status status) noexcept {
  switch (status) {
    case Status::kOk:
      return "intact";
    case Status::kTruncated:
      return "it ends too early";
    case Status::kNoFrame:
      return "it is no zstd frame";
    case Status::kBadHeader:
      return "a reserved bit of its header is set";
    case Status::kDictionary:
      return "it needs a dictionary";
    case Status::kWrongSize:
      return "it holds another number of bytes";
    case Status::kBadBlock:
      return "a block has an unknown type or is too large";
    case Status::kBadTable:
      return "an entropy table is not complete";
    case Status::kMissingTable:
      return "a block repeats a table that was never there";
    case Status::kBadStream:
      return "an entropy coded stream does not end where it has to";
    case Status::kBadSequence:
      return "a sequence copies bytes that are not there";
    case Status::kBadChecksum:
      return "its checksum differs";
    case Status::kTrailingBytes:
      return "bytes follow it";
  }
  return "unknown status";
}

}  // namespace onnxcomp::zstd
