// Packed signs, as a hostile model may hold them: refused, or computed alike by every instruction set.
//
// An input is u8 what to compute, numbers out_channels, in_channels, group and positions, kernel, strides, dilations
// (two each) and pads, u8 batch, height and width, and u8 flags (1 a scale, 2 a bias, 4 one threshold for each
// channel); the length of the weight's words (reader.h); u64 words; i8 scale and bias and i16 thresholds, for each
// output channel; then what is computed from, u64 words or, for signs to pack, i8.

#include <vector>

#include "binary/conv.h"
#include "binary/dispatch.h"
#include "binary/gemm.h"
#include "binary/planes.h"
#include "fuzz/reader.h"

namespace onnxcomp {
namespace {

using namespace binary;
using fuzz::Exact;
using fuzz::Reader;

enum What : uint8_t { kConvFloats, kConvBits, kGemmFloats, kGemmBits, kPack, kMaxPool, kWhats };

struct Input {
  What what;
  int64_t out_channels, in_channels, group, positions;
  Window window;
  int64_t batch, height, width;
  uint8_t flags;

  int64_t plane() const { return height * width; }
};

Input read_input(Reader& reader) {
  Input input;
  input.what = static_cast<What>(reader.byte() % kWhats);
  for (int64_t* number : {&input.out_channels, &input.in_channels, &input.group, &input.positions})
    *number = reader.number();
  for (auto* pair : {&input.window.kernel, &input.window.strides, &input.window.dilations}) {
    for (int64_t& number : *pair) number = reader.number();
  }
  for (int64_t& number : input.window.pads) number = reader.number();
  input.batch = reader.byte();
  input.height = reader.byte();
  input.width = reader.byte();
  input.flags = reader.byte();
  return input;
}

// What follows the sums.
class Outputs {
 public:
  Outputs(Reader& reader, const Input& input)
      : flags_(input.flags), scale_(input.out_channels), bias_(input.out_channels), thresholds_(input.out_channels) {
    const auto scale = reader.array<int8_t>(input.out_channels), bias = reader.array<int8_t>(input.out_channels);
    const auto thresholds = reader.array<int16_t>(input.out_channels);
    for (int64_t i = 0; i < input.out_channels; ++i) {
      scale_.data()[i] = static_cast<float>(scale.data()[i]) / 37.0f;
      bias_.data()[i] = static_cast<float>(bias.data()[i]) / 3.0f;
      thresholds_.data()[i] = thresholds.data()[i];
    }
  }
  FloatOutput to(float* y) const {
    return {y, flags_ & 1 ? scale_.data() : nullptr, flags_ & 2 ? bias_.data() : nullptr};
  }
  BitOutput to(uint64_t* y) const { return {y, thresholds_.data()}; }

 private:
  uint8_t flags_;
  Exact<float> scale_, bias_;
  Exact<int32_t> thresholds_;
};

template <class Tasks, class... Output>
void run(const Tasks& tasks, const Output&... out) {
  for (int64_t task = 0; task < tasks.task_count(); ++task) tasks.run(task, out...);
  fuzz::keep(static_cast<uint32_t>(tasks.work()));
}

// Pixels of one channel of the output; 0 where there are none, or with so many channels too many.
int64_t pixels_of(const Input& input, int64_t in_channels, int64_t out_channels) {
  const int64_t height = input.window.output_size(0, input.height), width = input.window.output_size(1, input.width);
  if (input.plane() == 0 || height < 1 || width < 1) return 0;
  const int64_t taps = input.window.positions();
  const bool small = fuzz::is_small({input.batch, height, width, out_channels}) &&
                     fuzz::is_small({input.batch, height, width, taps, words_of(in_channels)});
  return small ? input.batch * height * width : 0;
}

template <class Element>
void convolve(Reader& reader, const Input& input, const ConvWeights& weights) {
  constexpr bool kToBits = sizeof(Element) == sizeof(uint64_t);
  const int64_t pixels = pixels_of(input, weights.in_channels, weights.out_channels);
  if (pixels == 0 || !fuzz::is_small({input.batch, words_of(weights.in_channels), input.plane()})) return;
  const int64_t words = input.batch * words_of(weights.in_channels) * input.plane();
  const Outputs outputs(reader, input);
  const Exact<uint64_t> x = reader.array<uint64_t>(words);
  const std::vector<int32_t> sums = sum_positions(weights);
  const ConvInput image = {x.data(), input.batch, input.height, input.width};
  const int64_t channels = kToBits ? words_of(weights.out_channels) : weights.out_channels;
  fuzz::compare_kernels<Element>(available_kernels(), channels * pixels, [&](const Kernel& kernel, Element* y) {
    run(Conv(kernel, weights, sums, image, kToBits), outputs.to(y));
  });
}

template <class Element>
void multiply(Reader& reader, const Input& input, const GemmWeights& weights) {
  if (!fuzz::is_small({input.batch, weights.row_words() + weights.out_features})) return;
  const int64_t words = input.batch * weights.row_words();
  const Outputs outputs(reader, input);
  const Exact<uint64_t> x = reader.array<uint64_t>(words);
  const int64_t width = sizeof(Element) == sizeof(uint64_t) ? words_of(input.out_channels) : input.out_channels;
  fuzz::compare_kernels<Element>(available_kernels(), input.batch * width, [&](const Kernel& kernel, Element* y) {
    run(Gemm(kernel, weights, x.data(), input.batch), outputs.to(y));
  });
}

void pack_signs(Reader& reader, const Input& input) {
  const int64_t channels = input.in_channels, positions = input.plane();
  if (channels < 0 || positions == 0 || !fuzz::is_small({input.batch + 1, channels, positions})) return;
  const int64_t count = input.batch * channels * positions;
  const Exact<int8_t> integers = reader.array<int8_t>(count + channels + 1);
  const bool per_channel = input.flags & 4;
  Exact<float> x(count), thresholds(per_channel ? channels : 1);
  for (int64_t i = 0; i < thresholds.count(); ++i) thresholds.data()[i] = static_cast<float>(integers.data()[i] / 16);
  for (int64_t i = 0; i < count; ++i) x.data()[i] = static_cast<float>(integers.data()[channels + 1 + i] / 16);
  const auto comparison = static_cast<Comparison>(input.flags & 3);
  const PackInput first = {x.data(), channels, positions, thresholds.data(), per_channel, comparison};
  const int64_t words = input.batch * words_of(channels) * positions;
  fuzz::compare_kernels<uint64_t>(available_kernels(), words, [&](const Kernel& kernel, uint64_t* y) {
    run(Packing(kernel, first, input.batch, y));
  });
}

void pool(Reader& reader, const Input& input) {
  if (!find_defect(input.window).empty() || input.window.dilations[0] != 1 || input.window.dilations[1] != 1) return;
  const int64_t pixels = pixels_of(input, 1, 1);
  if (pixels == 0) return;
  const Exact<uint64_t> x = reader.array<uint64_t>(input.batch * input.plane()), y(pixels);
  run(MaxPool(input.window, x.data(), input.batch, input.height, input.width, y.data()));
  fuzz::record("any", y.data(), static_cast<size_t>(y.bytes()));
}

}  // namespace
}  // namespace onnxcomp

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace onnxcomp;
  Reader reader(data, size);
  const Input input = read_input(reader);
  const Exact<uint64_t> bits = reader.array<uint64_t>(reader.length());
  if (input.what == kPack) {
    pack_signs(reader, input);
  } else if (input.what == kMaxPool) {
    pool(reader, input);
  } else if (input.what == kGemmFloats || input.what == kGemmBits) {
    const GemmWeights weights = {bits.data(), input.in_channels, input.positions, input.out_channels};
    if (!find_defect(weights, bits.count()).empty()) return 0;
    input.what == kGemmBits ? multiply<uint64_t>(reader, input, weights) : multiply<float>(reader, input, weights);
  } else {
    const ConvWeights weights = {bits.data(), input.out_channels, input.in_channels, input.group, input.window};
    if (!find_defect(weights, bits.count()).empty()) return 0;
    if (input.what == kConvFloats) convolve<float>(reader, input, weights);
    else if (find_bits_defect(weights).empty()) convolve<uint64_t>(reader, input, weights);
  }
  return 0;
}
