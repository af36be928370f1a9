#include "codec/planes.h"

#include <algorithm>
#include <vector>

#include "codec/payload.h"

namespace onnxcomp::codec {
namespace {

// Field after field moves what is there up: the loops are plain, so that compilers vectorize them.
template <class Number>
void append(const int32_t* codes, int64_t count, int width, Number* numbers) {
  const auto mask = static_cast<uint32_t>((uint64_t{1} << width) - 1);
  for (int64_t i = 0; i < count; ++i) {
    const auto field = static_cast<Number>(static_cast<uint32_t>(codes[i]) & mask);
    numbers[i] = static_cast<Number>(static_cast<Number>(numbers[i] << width) | field);
  }
}

// `append` of the last field, and the sign back to the top.
template <class Number>
void append_rotated(const int32_t* codes, int64_t count, int width, Number* numbers) {
  constexpr int kBits = static_cast<int>(sizeof(Number)) * 8;
  const auto mask = static_cast<uint32_t>((uint64_t{1} << width) - 1);
  for (int64_t i = 0; i < count; ++i) {
    const auto field = static_cast<Number>(static_cast<uint32_t>(codes[i]) & mask);
    const auto whole = static_cast<Number>(static_cast<Number>(numbers[i] << width) | field);
    numbers[i] = static_cast<Number>(static_cast<Number>(whole >> 1) | static_cast<Number>(whole << (kBits - 1)));
  }
}

template <class Number>
Status decode_as(const Planes& planes, Geometry geometry, const LaneKernel& kernel, Number* numbers,
                 int* defective) {
  // Of a thread that decodes chunk after chunk, memory is taken once.
  static thread_local std::vector<int32_t> codes;
  const int64_t count = geometry.count();
  codes.resize(static_cast<size_t>(count));
  for (int field = 0; field < planes.count; ++field) {
    const Status status = decode(planes.payloads[field], geometry, kernel, codes.data());
    if (status != Status::kOk) {
      *defective = field;
      return status;
    }
    const int width = planes.widths[field];
    if (field == 0) std::fill(numbers, numbers + count, Number{0});
    if (field + 1 == planes.count && planes.rotated)
      append_rotated(codes.data(), count, width, numbers);
    else
      append(codes.data(), count, width, numbers);
  }
  return Status::kOk;
}

}  // namespace

int planes_bits(const uint8_t* widths, int count) noexcept {
  int bits = 0;
  for (int field = 0; field < count; ++field) {
    if (widths[field] < 1 || widths[field] > 31) return 0;
    bits += widths[field];
  }
  return bits;
}

Status decode_planes(const Planes& planes, Geometry geometry, const LaneKernel& kernel, void* numbers,
                     int* defective) {
  *defective = 0;
  if (!geometry.valid()) return Status::kBadGeometry;
  switch (planes_bits(planes.widths, planes.count)) {
    case 8:
      return decode_as(planes, geometry, kernel, static_cast<uint8_t*>(numbers), defective);
    case 16:
      return decode_as(planes, geometry, kernel, static_cast<uint16_t*>(numbers), defective);
    case 32:
      return decode_as(planes, geometry, kernel, static_cast<uint32_t*>(numbers), defective);
    case 64:
      return decode_as(planes, geometry, kernel, static_cast<uint64_t*>(numbers), defective);
    default:
      return Status::kBadHeader;
  }
}

}  // namespace onnxcomp::codec
