// Packed weights of int8, as a hostile model may hold them: refused, or computed alike by every instruction set.
//
// An input is u8 flags (1 a convolution, 2 results are float32, 4 with a bias), numbers out_channels, in_channels,
// groups and block_rows, u8 x_zero_point and y_zero_point, images (window.h; of a product only tokens); for a
// convolution a window; lengths of values, indices and offsets (reader.h); i32 offsets and indices, i8 values, f32
// scale, i32 bias, u8 x.

#include <vector>

#include "fuzz/packed_lists.h"
#include "fuzz/window.h"
#include "sparse_int8/conv.h"
#include "sparse_int8/dispatch.h"
#include "sparse_int8/matmul.h"

namespace onnxcomp {
namespace {

using namespace sparse_int8;
using fuzz::Exact;
using fuzz::Images;
using fuzz::PackedLists;
using fuzz::Reader;
using fuzz::run_tasks;

struct Input {
  uint8_t flags;
  PackedWeights weights;
  uint8_t x_zero_point, y_zero_point;
  Images images;
  ConvShape window;

  bool is_conv() const { return flags & 1; }
  bool to_float() const { return flags & 2; }
  bool has_bias() const { return flags & 4; }
};

Input read_input(Reader& reader) {
  Input input;
  input.flags = reader.byte();
  input.weights.out_channels = reader.number();
  input.weights.in_channels = reader.number();
  input.weights.groups = reader.number();
  input.weights.block_rows = reader.number();
  input.x_zero_point = reader.byte();
  input.y_zero_point = reader.byte();
  input.images = fuzz::read_images(reader);
  if (input.is_conv()) input.window = fuzz::read_window(reader);
  return input;
}

// Of one image, or token; 0 where no window fits, or it would take long.
int64_t outputs_of(const Input& input) {
  const int64_t inputs = input.weights.groups * (input.weights.in_channels + kQuad);
  const int64_t outputs = input.weights.out_channels;
  if (input.is_conv()) return outputs * fuzz::result_pixels(input.window, input.images, inputs, outputs);
  return fuzz::is_small({input.images.count, inputs + outputs}) ? outputs : 0;
}

template <class Result>
void multiply(const Input& input, const Layer& layer, const uint8_t* x, int64_t count) {
  fuzz::compare_kernels<Result>(available_kernels(), count, [&](const Kernel& kernel, Result* y) {
    uint8_t* codes = nullptr;
    float* results = nullptr;
    if constexpr (sizeof(Result) == 1)
      codes = y;
    else
      results = y;
    Scratch scratch;
    if (input.is_conv())
      run_tasks(Conv(kernel, layer, input.window, scratch, x, input.images.count, input.images.height,
                     input.images.width, codes, results));
    else
      run_tasks(MatMul(kernel, layer, scratch, x, input.images.count, codes, results));
  });
}

void compute(Reader& reader, const Input& input) {
  const PackedWeights& weights = input.weights;
  const Exact<float> scale = reader.array<float>(weights.out_channels);
  const Exact<int32_t> bias = reader.array<int32_t>(weights.out_channels);
  if (!find_scale_defect(scale.data(), weights.out_channels).empty()) return;
  const Layer layer(weights, scale.data(), input.has_bias() ? bias.data() : nullptr, input.x_zero_point,
                    input.y_zero_point);
  const int64_t image_outputs = outputs_of(input);
  if (image_outputs == 0) return;
  const int64_t pixels = input.is_conv() ? input.images.pixels() : 1;
  const int64_t inputs = input.images.count * weights.groups * weights.in_channels * pixels;
  const int64_t outputs = input.images.count * image_outputs;
  const Exact<uint8_t> x = reader.array<uint8_t>(inputs);
  if (input.to_float())
    multiply<float>(input, layer, x.data(), outputs);
  else
    multiply<uint8_t>(input, layer, x.data(), outputs);
}

}  // namespace
}  // namespace onnxcomp

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace onnxcomp;
  Reader reader(data, size);
  Input input = read_input(reader);
  const PackedLists<int8_t> lists(reader, [&](int64_t count) { return reader.array<int8_t>(count); });
  PackedWeights& weights = input.weights;
  lists.lend(&weights);
  if (!find_defect(input.window).empty()) return 0;
  weights.positions = input.window.positions();
  if (!input.is_conv() && weights.groups != 1) return 0;
  if (!find_defect(weights, lists.lengths()).empty()) return 0;
  compute(reader, input);
  return 0;
}
