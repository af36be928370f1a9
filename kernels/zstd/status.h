#pragma once

#include <cstdint>

namespace onnxcomp::zstd {

// What can be wrong with a frame. Nothing in this folder throws or allocates.
enum class Status : uint8_t {
  kOk,
  kTruncated,      // the frame, a block or a table ends too early
  kNoFrame,        // another magic, or a skippable frame
  kBadHeader,      // a reserved bit
  kDictionary,     // it needs one
  kWrongSize,      // it declares or holds another number of bytes than asked for
  kBadBlock,       // an unknown type, or more than a block may hold
  kBadTable,       // probabilities or code lengths do not sum to one
  kMissingTable,   // repeats one that was never there
  kBadStream,      // an entropy coded stream does not end where it has to
  kBadSequence,    // more literals than there are, or a match from before the start
  kBadChecksum,
  kTrailingBytes,  // something follows the frame
};

const char* describe(Status status) noexcept;

}  // namespace onnxcomp::zstd
