#include "convolution/geometry.h"

#include <algorithm>
#include <new>
#include <utility>

namespace onnxcomp {
namespace {

constexpr int64_t kLargestWindow = 1 << 15;
constexpr double kLargestCopy = 70368744177664.0;  // 2^46, so that no product overflows

std::string find_axis_defect(const char* name, const ConvAxis& axis) {
  const auto describe = [&](const char* what, int64_t found, const char* expected) {
    return std::string(what) + " of the " + name + " is " + std::to_string(found) + ", expected " +
           expected;
  };
  for (const auto& [what, found] : {std::pair{"the kernel", axis.taps},
                                    {"the stride", axis.stride},
                                    {"the dilation", axis.dilation}}) {
    if (found < 1 || found > kLargestWindow) return describe(what, found, "1 to 32768");
  }
  for (const int64_t pad : {axis.pad_before, axis.pad_after}) {
    if (pad < 0 || pad > kLargestWindow) return describe("padding", pad, "0 to 32768");
  }
  return {};
}

}  // namespace

int64_t ConvAxis::outputs(int64_t pixels) const {
  const int64_t room = pixels + pad_before + pad_after - dilation * (taps - 1) - 1;
  return room < 0 ? 0 : room / stride + 1;
}

std::string find_defect(const ConvShape& shape) {
  const std::string defect = find_axis_defect("rows", shape.rows);
  return defect.empty() ? find_axis_defect("columns", shape.columns) : defect;
}

CopyAxis::CopyAxis(const ConvAxis& axis, int64_t pixels)
    : outputs(axis.outputs(pixels)),
      length(outputs + axis.dilation * (axis.taps - 1) / axis.stride) {
  std::vector<int64_t> remainders;
  for (int64_t tap = 0; tap < axis.taps; ++tap) {
    const int64_t remainder = tap * axis.dilation % axis.stride;
    const auto known = std::find(remainders.begin(), remainders.end(), remainder);
    tap_phase.push_back(known - remainders.begin());
    tap_shift.push_back(tap * axis.dilation / axis.stride);
    if (known != remainders.end()) continue;
    remainders.push_back(remainder);
    // Copied pixel i is pixel i * stride - before of the image.
    const int64_t before = axis.pad_before - remainder;
    const int64_t first = before <= 0 ? 0 : (before + axis.stride - 1) / axis.stride;
    const int64_t end = pixels + before <= 0 ? 0 : (pixels + before - 1) / axis.stride + 1;
    CopyPhase phase;
    phase.first = std::min(first, length);
    phase.last = std::clamp(end, phase.first, length);
    phase.pixel = phase.first * axis.stride - before;
    phases.push_back(phase);
  }
}

bool CopyAxis::copies(int64_t pixels) const {
  return phases.size() == 1 && phases[0].first == 0 && phases[0].last == pixels && length == pixels;
}

ConvGeometry::ConvGeometry(const ConvShape& shape, int64_t height, int64_t width,
                           int64_t channels, int64_t pixel_bytes)
    : height_(height),
      width_(width),
      row_stride_(shape.rows.stride),
      rows_(shape.rows, height),
      columns_(shape.columns, width) {
  const double bytes = static_cast<double>(channels) *
                       static_cast<double>(rows_.phases.size() * columns_.phases.size()) *
                       static_cast<double>(rows_.length) * static_cast<double>(columns_.length) *
                       static_cast<double>(pixel_bytes);
  if (bytes > kLargestCopy) throw std::bad_alloc();
}

int64_t ConvGeometry::flat_columns() const {
  return (rows_.outputs - 1) * columns_.length + columns_.outputs;
}

int64_t ConvGeometry::channel_pixels() const { return planes() * plane_pixels(); }

CopyRows ConvGeometry::rows_read(int64_t first, int64_t last) const {
  // The last tap lies so far behind the first, in the phase of either.
  const int64_t reach =
      (rows_.length - rows_.outputs) * columns_.length + columns_.length - columns_.outputs;
  return {first / columns_.length,
          std::min((last - 1 + reach) / columns_.length + 1, rows_.length)};
}

std::vector<int64_t> ConvGeometry::tap_places() const {
  std::vector<int64_t> places;
  for (size_t row = 0; row < rows_.tap_phase.size(); ++row) {
    for (size_t column = 0; column < columns_.tap_phase.size(); ++column) {
      const auto column_phases = static_cast<int64_t>(columns_.phases.size());
      const int64_t plane = rows_.tap_phase[row] * column_phases + columns_.tap_phase[column];
      places.push_back((plane * rows_.length + rows_.tap_shift[row]) * columns_.length +
                       columns_.tap_shift[column]);
    }
  }
  return places;
}

int ConvGeometry::find_segments(int64_t first_column, int64_t last_column,
                                Segment* segments) const {
  if (columns_.outputs == columns_.length) {  // one long row
    *segments = {0, first_column, last_column - first_column};
    return 1;
  }
  int count = 0;
  for (int64_t column = first_column; column < last_column;) {
    const int64_t row = column / columns_.length;
    const int64_t at = column % columns_.length;
    const int64_t length = std::min(columns_.outputs - at, last_column - column);
    if (length > 0)
      segments[count++] = {column - first_column, row * columns_.outputs + at, length};
    column = (row + 1) * columns_.length;
  }
  return count;
}

}  // namespace onnxcomp
