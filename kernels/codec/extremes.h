#pragma once

#include <cstdint>

namespace onnxcomp::codec {

struct Extremes {
  int32_t smallest;
  int32_t largest;
};

// Of at least one code. Plain, so that compilers vectorize it, as they do not std::minmax_element.
inline Extremes extremes_of(const int32_t* codes, int64_t count) noexcept {
  Extremes found = {codes[0], codes[0]};
  for (int64_t i = 0; i < count; ++i) {
    found.smallest = codes[i] < found.smallest ? codes[i] : found.smallest;
    found.largest = codes[i] > found.largest ? codes[i] : found.largest;
  }
  return found;
}

}  // namespace onnxcomp::codec
