#pragma once

#include <cstdint>
#include <string>

namespace onnxcomp {

// What sparse formats have in common: blocks of outputs, each with a list of the inputs it reads.
// The arrays belong to somebody else (the model).
struct EntryLists {
  const int32_t* offsets;  // [blocks + 1]: block b owns entries offsets[b] .. offsets[b + 1]
  int64_t blocks;
  const int32_t* indices;  // [entries], strictly ascending within a block
};

// Lengths of the values, indices and offsets as the model declares them.
struct PackedLengths {
  int64_t values;
  int64_t indices;
  int64_t offsets;
};

// One line that says what is wrong and where, or an empty string: every block lies inside
// `entries`, every index within 0 to `largest`.
std::string find_entry_defect(const EntryLists& lists, int64_t entries, int64_t largest);

// "`what` is `found`, expected `expected`".
std::string describe_defect(const char* what, int64_t found, const std::string& expected);

}  // namespace onnxcomp
