#include <algorithm>

#include "trellis/trellis.h"

namespace onnxcomp::trellis {
namespace {

constexpr int kLanes = 64;  // sequences at once

// Codes wrap as unsigned numbers do: a hostile one has a value, too.
int32_t integer_of(int32_t code, int32_t is_odd) noexcept {
  const int32_t sign = (code > 0) - (code < 0);
  return static_cast<int32_t>(2 * static_cast<uint32_t>(code) - static_cast<uint32_t>(sign * is_odd));
}

// Neighbouring sequences: code i of sequence j is codes[i * stride + j].
void restore_side_by_side(int32_t* codes, int64_t length, int64_t stride, int64_t lanes) noexcept {
  int32_t states[kLanes] = {};
  for (int64_t i = 0; i < length; ++i) {
    int32_t* row = codes + i * stride;
    for (int64_t j = 0; j < lanes; ++j) {
      const int32_t state = states[j], is_odd = state >> 3, code = row[j];
      states[j] = ((state << 1) & 15) ^ (is_odd * 9) ^ ((code & 1) << 2);
      row[j] = integer_of(code, is_odd);
    }
  }
}

// Sequences one after the other: code i of sequence j is codes[j * length + i].
template <int kTogether>
void restore_in_turn(int32_t* codes, int64_t length) noexcept {
  int32_t states[kTogether] = {};
  for (int64_t i = 0; i < length; ++i) {
    for (int j = 0; j < kTogether; ++j) {
      int32_t* code = codes + j * length + i;
      const int32_t state = states[j], is_odd = state >> 3, value = *code;
      states[j] = ((state << 1) & 15) ^ (is_odd * 9) ^ ((value & 1) << 2);
      *code = integer_of(value, is_odd);
    }
  }
}

}  // namespace

void restore(int32_t* codes, int64_t outer, int64_t length, int64_t inner) noexcept {
  if (inner == 1) {
    constexpr int kTogether = 8;
    int64_t j = 0;
    for (; j + kTogether <= outer; j += kTogether) restore_in_turn<kTogether>(codes + j * length, length);
    for (; j < outer; ++j) restore_in_turn<1>(codes + j * length, length);
    return;
  }
  for (int64_t block = 0; block < outer; ++block) {
    for (int64_t first = 0; first < inner; first += kLanes)
      restore_side_by_side(codes + block * length * inner + first, length, inner,
                           std::min<int64_t>(kLanes, inner - first));
  }
}

}  // namespace onnxcomp::trellis
