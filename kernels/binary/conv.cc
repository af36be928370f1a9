#include "binary/conv.h"

#include <algorithm>
#include <cstring>

namespace onnxcomp::binary {
namespace {

// Enough tasks that a few threads share them evenly, few enough that their panels stay in the cache.
constexpr int64_t kStripsWanted = 32;

// Where strips are few, and have one panel each, parts of the channels share it.
int64_t count_parts(const ConvWeights& weights, int64_t strips) {
  const int64_t most = words_of(weights.out_channels / weights.group);
  const int64_t tasks = std::max<int64_t>(strips * weights.group, 1);
  return std::clamp<int64_t>((kStripsWanted + tasks - 1) / tasks, 1, most);
}

}  // namespace

Conv::Conv(const Kernel& kernel, const ConvWeights& weights,
           const std::vector<int32_t>& position_sums, const ConvInput& input, bool to_bits)
    : kernel_(kernel),
      weights_(weights),
      input_(input),
      borders_(weights, position_sums, input.height, input.width),
      to_bits_(to_bits),
      out_height_(weights.window.output_size(0, input.height)),
      out_width_(weights.window.output_size(1, input.width)),
      pixels_(input.batch * out_height_ * out_width_),
      panels_((pixels_ + kTileLanes - 1) / kTileLanes),
      strips_(std::min(panels_, kStripsWanted)),
      parts_(count_parts(weights, strips_)),
      panel_words_(strips_ * weights.group * kTileLanes * weights.row_words()),
      strip_panels_(new Panel[static_cast<size_t>(strips_ * weights.group)]),
      fillings_(strips_ * weights.group) {}

Conv::Task Conv::task_at(int64_t task) const {
  const int64_t part = task % parts_;
  const int64_t group = task / parts_ % weights_.group;
  const int64_t strip = task / parts_ / weights_.group;
  const int64_t channels = weights_.out_channels / weights_.group;
  const int64_t words = words_of(channels);
  const auto channel_at = [&](int64_t cut) {
    return group * channels + std::min(words * cut / parts_ * kWordBits, channels);
  };
  return {{panels_ * strip / strips_, panels_ * (strip + 1) / strips_},
          group,
          {channel_at(part), channel_at(part + 1)},
          task / parts_};
}

// Which pixels a panel has, and where their results go.
void Conv::place(int64_t index, Pixel (&pixels)[kTileLanes], Panel& panel) const noexcept {
  const int64_t first = index * kTileLanes;
  const int64_t image_pixels = out_height_ * out_width_;
  const int64_t image_outputs =
      image_pixels * (to_bits_ ? words_of(weights_.out_channels) : weights_.out_channels);
  panel.lanes = std::min(kTileLanes, pixels_ - first);
  panel.run_count = 0;
  panel.at_border = false;
  Pixel pixel = {first / image_pixels, first % image_pixels / out_width_, first % out_width_};
  for (int64_t lane = 0; lane < kTileLanes; ++lane) {
    if (lane >= panel.lanes) {  // its words are computed, but not written
      pixels[lane] = pixels[0];
      panel.classes[lane] = 0;
      continue;
    }
    pixels[lane] = pixel;
    panel.classes[lane] = borders_.any() ? borders_.class_of(pixel.row, pixel.column) : 0;
    panel.at_border = panel.at_border || panel.classes[lane] != 0;
    const bool new_image = pixel.row == 0 && pixel.column == 0;
    if (lane == 0 || new_image) {
      const int64_t output = pixel.image * image_outputs + pixel.row * out_width_ + pixel.column;
      panel.runs[panel.run_count++] = {lane, 0, output};
    }
    ++panel.runs[panel.run_count - 1].count;
    if (++pixel.column < out_width_) continue;
    pixel.column = 0;
    if (++pixel.row < out_height_) continue;
    pixel.row = 0;
    ++pixel.image;
  }
}

void Conv::fill(int64_t index, int64_t group, Panel& panel) const noexcept {
  Pixel pixels[kTileLanes];
  place(index, pixels, panel);
  const int64_t plane = input_.height * input_.width;
  const uint64_t* bits = input_.bits + group * weights_.words() * plane;
  for (int64_t lane = 0; lane < panel.lanes; lane += kLanes)
    fill_block(pixels + lane, bits, panel.words + lane * weights_.row_words());
}

void Conv::fill_block(const Pixel* pixels, const uint64_t* bits, uint64_t* to) const noexcept {
  const Window& window = weights_.window;
  const Pixel& first = pixels[0];
  const Pixel& last = pixels[kLanes - 1];
  const bool in_a_row = window.strides[1] == 1 && first.image == last.image &&
                        first.row == last.row && last.column - first.column == kLanes - 1;
  const int64_t words = weights_.words();
  const int64_t plane = input_.height * input_.width;
  const int64_t image = words_of(weights_.in_channels) * plane;
  for (int64_t y = 0; y < window.kernel[0]; ++y) {
    for (int64_t x = 0; x < window.kernel[1]; ++x, to += words * kLanes) {
      const int64_t down = y * window.dilations[0] - window.pads[0];
      const int64_t right = x * window.dilations[1] - window.pads[1];
      const auto offset_of = [&](const Pixel& pixel) {  // -1 where padded
        const int64_t row = pixel.row * window.strides[0] + down;
        const int64_t column = pixel.column * window.strides[1] + right;
        const bool inside = 0 <= row && row < input_.height && 0 <= column && column < input_.width;
        return inside ? pixel.image * image + row * input_.width + column : -1;
      };
      const int64_t offset = offset_of(first);
      if (in_a_row && offset >= 0 && offset_of(last) >= 0) {
        for (int64_t word = 0; word < words; ++word)
          std::memcpy(to + word * kLanes, bits + word * plane + offset, kLanes * sizeof(uint64_t));
        continue;
      }
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const int64_t from = offset_of(pixels[lane]);
        for (int64_t word = 0; word < words; ++word)
          to[word * kLanes + lane] = from < 0 ? 0 : bits[word * plane + from];
      }
    }
  }
}

ConvRows Conv::rows() const {
  return {weights_.bits, weights_.row_words(), static_cast<int32_t>(weights_.signs()),
          borders_.corrections(), out_height_ * out_width_};
}

template <class Output>
void Conv::run_task(int64_t index, const Output& out,
                    void (*multiply)(const ConvRows&, const Panel&, Range,
                                     const Output&)) const noexcept {
  const Task task = task_at(index);
  Panel& panel = strip_panels_[static_cast<size_t>(task.strip)];
  for (int64_t at = task.panels.first; at < task.panels.last; ++at) {
    const auto fill_panel = [&](int64_t strip) {
      panel.words = panel_words_.get() + strip * kTileLanes * weights_.row_words();
      fill(at, task.group, panel);
    };
    parts_ == 1 ? fill_panel(task.strip) : fillings_.need(task.strip, task.strip + 1, fill_panel);
    multiply(rows(), panel, task.channels, out);
  }
}

void Conv::run(int64_t task, const FloatOutput& out) const noexcept {
  run_task(task, out, kernel_.conv_floats);
}

void Conv::run(int64_t task, const BitOutput& out) const noexcept {
  run_task(task, out, kernel_.conv_bits);
}

}  // namespace onnxcomp::binary
