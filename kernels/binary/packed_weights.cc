#include "binary/packed_weights.h"

namespace onnxcomp::binary {
namespace {

// Bounds every product of a few dimensions below 2^63, and twice a sum of signs below 2^31.
constexpr int64_t kMaxDimension = int64_t{1} << 31;
constexpr int64_t kMaxKernel = int64_t{1} << 15;
constexpr int64_t kMaxSigns = int64_t{1} << 29;

std::string describe(const std::string& what, int64_t found, const std::string& expected) {
  return what + " is " + std::to_string(found) + ", expected " + expected;
}

std::string find_outside(const std::string& what, int64_t found, int64_t smallest, int64_t largest) {
  if (smallest <= found && found <= largest) return {};
  return describe(what, found, std::to_string(smallest) + " to " + std::to_string(largest));
}

std::string find_length_defect(int64_t length, int64_t rows, int64_t row_words) {
  if (length == rows * row_words) return {};
  return describe("the number of words", length, std::to_string(rows * row_words));
}

// Bits past the last channel would be summed as differences.
std::string find_tail_defect(uint64_t word, int64_t channels, int64_t at) {
  const int64_t used = channels % kWordBits;
  if (used == 0 || word >> used == 0) return {};
  return "word " + std::to_string(at) + " has bits beyond the last of " + std::to_string(channels) +
         " channels";
}

}  // namespace

int64_t Window::output_size(int axis, int64_t size) const {
  const int64_t reach = (kernel[axis] - 1) * dilations[axis] + 1;
  const int64_t room = size + pads[axis] + pads[axis + 2] - reach;
  return room < 0 ? 0 : room / strides[axis] + 1;
}

std::string find_defect(const Window& window) {
  for (int axis = 0; axis < 2; ++axis) {
    const std::string at = "[" + std::to_string(axis) + "]";
    std::string defect = find_outside("kernel_shape" + at, window.kernel[axis], 1, kMaxKernel);
    if (defect.empty()) defect = find_outside("strides" + at, window.strides[axis], 1, kMaxDimension);
    if (defect.empty())
      defect = find_outside("dilations" + at, window.dilations[axis], 1, kMaxDimension);
    if (!defect.empty()) return defect;
  }
  for (int side = 0; side < 4; ++side) {
    const int64_t reach = (window.kernel[side % 2] - 1) * window.dilations[side % 2] + 1;
    const std::string defect =
        find_outside("pads[" + std::to_string(side) + "]", window.pads[side], 0, reach);
    if (!defect.empty()) return defect;
  }
  return {};
}

std::string find_defect(const ConvWeights& weights, int64_t length) {
  std::string defect = find_defect(weights.window);
  if (defect.empty()) defect = find_outside("in_channels", weights.in_channels, 1, kMaxDimension);
  if (defect.empty()) defect = find_outside("out_channels", weights.out_channels, 1, kMaxDimension);
  if (defect.empty()) defect = find_outside("group", weights.group, 1, weights.in_channels);
  if (!defect.empty()) return defect;
  if (weights.in_channels % weights.group != 0 || weights.out_channels % weights.group != 0)
    return describe("group", weights.group, "a divisor of in_channels and out_channels");
  const int64_t channels = weights.group_channels();
  if (weights.group > 1 && channels % kWordBits != 0)
    return describe("in_channels / group", channels, "a multiple of 64 where there are groups");
  defect = find_outside("the number of signs in a sum", weights.signs(), 1, kMaxSigns);
  if (defect.empty()) defect = find_length_defect(length, weights.out_channels, weights.row_words());
  const int64_t words = weights.words();
  for (int64_t last = words - 1; defect.empty() && last < length; last += words)
    defect = find_tail_defect(weights.bits[last], channels, last);
  return defect;
}

std::string find_bits_defect(const ConvWeights& weights) {
  const int64_t channels = weights.out_channels / weights.group;
  if (weights.group == 1 || channels % kWordBits == 0) return {};
  return describe("out_channels / group", channels, "a multiple of 64 where there are groups");
}

std::string find_defect(const GemmWeights& weights, int64_t length) {
  std::string defect = find_outside("in_channels", weights.in_channels, 1, kMaxSigns);
  if (defect.empty()) defect = find_outside("positions", weights.positions, 1, kMaxSigns);
  if (defect.empty()) defect = find_outside("out_features", weights.out_features, 1, kMaxDimension);
  if (defect.empty())
    defect = find_outside("the number of signs in a sum", weights.signs(), 1, kMaxSigns);
  if (defect.empty())
    defect = find_length_defect(length, weights.blocks() * kLanes, weights.row_words());
  if (!defect.empty()) return defect;
  const int64_t row = weights.row_words() * kLanes;
  const int64_t tail = weights.positions * kLanes;  // the words of the last channels
  for (int64_t block = 0; defect.empty() && block < weights.blocks(); ++block) {
    for (int64_t at = (block + 1) * row - tail; defect.empty() && at < (block + 1) * row; ++at)
      defect = find_tail_defect(weights.bits[at], weights.in_channels, at);
  }
  return defect;
}

}  // namespace onnxcomp::binary
