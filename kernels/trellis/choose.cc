#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "trellis/trellis.h"

namespace onnxcomp::trellis {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();

// The state that leads to `state` by a code of that parity.
constexpr int before(int state, int parity) noexcept {
  const int was_odd = state & 1;
  return 8 * was_odd + (((state ^ (9 * was_odd) ^ (4 * parity)) & 15) >> 1);
}
static_assert(next(before(5, 1), 1) == 5 && next(before(8, 0), 0) == 8 && next(before(15, 1), 7) == 15);

// Of one target: the best code of each parity among the even integers and among the odd ones with zero.
struct Choices {
  int32_t code[4];  // 2 * odd + parity; magnitudes
  double cost[4];
};

Choices choices_of(double magnitude, Prices prices) noexcept {
  Choices found;
  for (int kind = 0; kind < 4; ++kind) {
    const int is_odd = kind >> 1, parity = kind & 1;
    const double wanted = (magnitude + is_odd) / 2;  // as a code
    const auto below = 2 * static_cast<int64_t>((wanted - parity) / 2) + parity;  // rounded towards zero
    found.cost[kind] = kNever;
    for (int64_t code = below; code <= below + 2; code += 2) {
      const double error = magnitude - static_cast<double>(code > 0 ? 2 * code - is_odd : 0);
      const double cost = error * error + static_cast<double>(prices.of_code[std::min(code, prices.count - 1)]);
      if (cost < found.cost[kind]) {
        found.cost[kind] = cost;
        found.code[kind] = static_cast<int32_t>(code);
      }
    }
  }
  return found;
}

struct Step {
  int32_t code[4];
  uint16_t parities;  // bit t: by which parity state t was reached best
};

using Costs = std::array<double, kStates>;

Costs advance(const Costs& costs, const Choices& choices, uint16_t* parities) noexcept {
  Costs reached;
  unsigned bits = 0;
  for (int state = 0; state < kStates; ++state) {
    const double* cost = choices.cost + 2 * (state & 1);
    const double even = costs[static_cast<size_t>(before(state, 0))] + cost[0];
    const double odd_code = costs[static_cast<size_t>(before(state, 1))] + cost[1];
    bits |= static_cast<unsigned>(odd_code < even) << state;
    reached[static_cast<size_t>(state)] = odd_code < even ? odd_code : even;
  }
  *parities = static_cast<uint16_t>(bits);
  return reached;
}

// One sequence. `steps` has room for it.
double choose_one(const double* targets, int64_t length, Prices prices, Step* steps, int32_t* integers) noexcept {
  Costs costs;
  costs.fill(kNever);
  costs[0] = 0;
  for (int64_t i = 0; i < length; ++i) {
    const Choices choices = choices_of(std::fabs(targets[i]), prices);
    std::copy_n(choices.code, 4, steps[i].code);
    costs = advance(costs, choices, &steps[i].parities);
  }
  const auto best = std::min_element(costs.begin(), costs.end());
  int state = static_cast<int>(best - costs.begin());
  for (int64_t i = length; i-- > 0;) {
    const int is_odd = state & 1, parity = steps[i].parities >> state & 1;
    const int32_t code = steps[i].code[2 * is_odd + parity];
    const int32_t magnitude = code > 0 ? 2 * code - is_odd : 0;
    integers[i] = targets[i] < 0 ? -magnitude : magnitude;
    state = before(state, parity);
  }
  return *best;
}

}  // namespace

double choose(const double* targets, int64_t length, int64_t period, Prices prices, int32_t* integers) {
  std::vector<Step> steps(static_cast<size_t>(std::min(length, period)));
  double total = 0;
  for (int64_t first = 0; first < length; first += period)
    total += choose_one(targets + first, std::min(period, length - first), prices, steps.data(), integers + first);
  return total;
}

}  // namespace onnxcomp::trellis
