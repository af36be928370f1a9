#pragma once

// Trellis-coded integers (docs/container.md, representation `trellis`). Which integers a code can stand
// for depends on the codes before it in its sequence: even ones, or odd ones and zero. The state that
// says so follows the rate-1/2 code of 16 states of Ungerboeck, "Trellis-coded modulation with redundant
// signal sets", 1987: parity checks 23 and 04 (octal).

#include <cstdint>

namespace onnxcomp::trellis {

inline constexpr int kStates = 16;

// 1: odd integers and zero; 0: even ones.
constexpr int odd(int state) noexcept { return state >> 3; }

constexpr int next(int state, int32_t code) noexcept {
  return ((state << 1) & 15) ^ (odd(state) != 0 ? 9 : 0) ^ ((code & 1) != 0 ? 4 : 0);
}

// codes[outer, length, inner] -> integers, in their place. Every sequence of `length` starts in state 0.
void restore(int32_t* codes, int64_t outer, int64_t length, int64_t inner) noexcept;

// What codes cost besides their errors.
struct Prices {
  const float* of_code;  // [count], by magnitude
  int64_t count;         // at least 1; larger codes cost what the last one does
};

// Integers and the codes that stand for them, for targets[length] in units of an integer: those with the least
// sum of (target - integer)^2 + price, by Viterbi's algorithm; the state is 0 again every `period` targets.
// Returns that sum. Throws std::bad_alloc.
double choose(const double* targets, int64_t length, int64_t period, Prices prices, int32_t* integers);

}  // namespace onnxcomp::trellis
