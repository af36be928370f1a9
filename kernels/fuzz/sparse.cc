// Packed weights of float32, as a hostile model may hold them: refused, or computed alike by every instruction set.
//
// An input is u8 flags (1 a convolution, 2 with a bias, 4 a relu), numbers inputs (at one position), outputs, groups
// and block_size, images (window.h; of a product only tokens); for a convolution a window; lengths of values, indices
// and offsets (reader.h); i32 offsets and indices; i8 values, x and bias, whose products and sums are exact.

#include <limits>
#include <vector>

#include "fuzz/packed_lists.h"
#include "fuzz/window.h"
#include "sparse/conv.h"
#include "sparse/matmul.h"

namespace onnxcomp {
namespace {

using fuzz::Exact;
using fuzz::Images;
using fuzz::PackedLists;
using fuzz::Reader;
using fuzz::run;
using fuzz::run_tasks;
using sparse::Kernel;
using sparse::PackedWeights;

struct Layer {
  uint8_t flags;
  int64_t channels;  // those that one output reads
  PackedWeights weights;
  Images images;
  ConvShape window;

  bool is_conv() const { return flags & 1; }
  bool has_bias() const { return flags & 2; }
  float low() const { return flags & 4 ? 0.0f : -std::numeric_limits<float>::infinity(); }
};

Layer read_layer(Reader& reader) {
  Layer layer;
  layer.flags = reader.byte();
  layer.channels = reader.number();
  layer.weights.out_features = reader.number();
  layer.weights.groups = reader.number();
  layer.weights.block_size = reader.number();
  layer.images = fuzz::read_images(reader);
  if (layer.is_conv()) layer.window = fuzz::read_window(reader);
  return layer;
}

Exact<float> read_floats(Reader& reader, int64_t count) {
  const Exact<int8_t> integers = reader.array<int8_t>(count);
  Exact<float> floats(count);
  for (int64_t i = 0; i < count; ++i) floats.data()[i] = static_cast<float>(integers.data()[i]);
  return floats;
}

void multiply(Reader& reader, const Layer& layer) {
  const PackedWeights& weights = layer.weights;
  const int64_t tokens = layer.images.count, outputs = weights.out_features;
  if (!fuzz::is_small({tokens, layer.channels + outputs})) return;
  const Exact<float> x = read_floats(reader, tokens * layer.channels);
  const Exact<float> bias = read_floats(reader, layer.has_bias() ? outputs : 0);
  fuzz::compare_kernels<float>(sparse::available_kernels(), tokens * outputs, [&](const Kernel& kernel, float* y) {
    Scratch scratch;
    run_tasks(
        sparse::MatMul(kernel, weights, layer.has_bias() ? bias.data() : nullptr, scratch, x.data(), tokens, y));
  });
}

void convolve(Reader& reader, const Layer& layer) {
  const PackedWeights& weights = layer.weights;
  const Images& images = layer.images;
  const int64_t inputs = weights.groups * layer.channels, outputs = weights.out_features;
  const int64_t pixels = fuzz::result_pixels(layer.window, images, inputs, outputs);
  if (pixels == 0) return;
  const Exact<float> x = read_floats(reader, images.count * inputs * images.pixels());
  const Exact<float> bias = read_floats(reader, layer.has_bias() ? outputs : 0);
  const int64_t count = images.count * outputs * pixels;
  fuzz::compare_kernels<float>(sparse::available_kernels(), count, [&](const Kernel& kernel, float* y) {
    Scratch scratch;
    run(sparse::Conv(kernel, weights, layer.has_bias() ? bias.data() : nullptr, layer.low(), layer.window, scratch,
                     x.data(), images.count, images.height, images.width, y));
  });
}

}  // namespace
}  // namespace onnxcomp

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace onnxcomp;
  Reader reader(data, size);
  Layer layer = read_layer(reader);
  const PackedLists<float> lists(reader, [&](int64_t count) { return read_floats(reader, count); });
  PackedWeights& weights = layer.weights;
  lists.lend(&weights);
  if (!find_defect(layer.window).empty()) return 0;
  if (!sparse::find_channel_defect(layer.channels, layer.window.positions()).empty()) return 0;
  weights.in_features = layer.channels * layer.window.positions();
  if (!layer.is_conv() && weights.groups != 1) return 0;
  if (!find_defect(weights, lists.lengths()).empty()) return 0;
  layer.is_conv() ? convolve(reader, layer) : multiply(reader, layer);
  return 0;
}
