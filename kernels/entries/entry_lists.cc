#include "entries/entry_lists.h"

namespace onnxcomp {
namespace {

std::string at(int64_t position) { return " at position " + std::to_string(position); }

std::string find_offset_defect(const EntryLists& lists, int64_t entries) {
  if (lists.offsets[0] != 0) return describe_defect("offsets[0]", lists.offsets[0], "0");
  for (int64_t block = 0; block < lists.blocks; ++block) {
    if (lists.offsets[block + 1] < lists.offsets[block])
      return describe_defect("offsets", lists.offsets[block + 1],
                             "at least " + std::to_string(lists.offsets[block]) + at(block + 1));
  }
  if (lists.offsets[lists.blocks] != entries)
    return describe_defect("the last offset", lists.offsets[lists.blocks],
                           std::to_string(entries) + " (the number of indices)");
  return {};
}

}  // namespace

std::string describe_defect(const char* what, int64_t found, const std::string& expected) {
  return std::string(what) + " is " + std::to_string(found) + ", expected " + expected;
}

std::string find_entry_defect(const EntryLists& lists, int64_t entries, int64_t largest) {
  std::string defect = find_offset_defect(lists, entries);
  if (!defect.empty()) return defect;
  for (int64_t block = 0; block < lists.blocks; ++block) {
    int64_t previous = -1;
    for (int64_t entry = lists.offsets[block]; entry < lists.offsets[block + 1]; ++entry) {
      const int64_t index = lists.indices[entry];
      if (index < 0 || index > largest)
        return describe_defect("an index", index, "0 to " + std::to_string(largest) + at(entry));
      if (index <= previous)
        return describe_defect(
            "an index", index,
            "more than the " + std::to_string(previous) + " before it" + at(entry));
      previous = index;
    }
  }
  return {};
}

}  // namespace onnxcomp
