#include "codec/planes.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "codec/payload.h"
#include "codec/rans.h"
#include "codec/raw.h"

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

// Of a thread that decodes chunk after chunk, memory is taken once.
int32_t* room_for(int64_t count) {
  static thread_local std::vector<int32_t> codes;
  codes.resize(static_cast<size_t>(count));
  return codes.data();
}

template <class Number>
Status decode_as(const Planes& planes, Geometry geometry, const LaneKernel& kernel, Number* numbers,
                 int* defective) {
  const int64_t count = geometry.count();
  int32_t* const codes = room_for(count);
  for (int field = 0; field < planes.count; ++field) {
    const Status status = decode(planes.payloads[field], geometry, kernel, codes);
    if (status != Status::kOk) {
      *defective = field;
      return status;
    }
    const int width = planes.widths[field];
    if (field == 0) std::fill(numbers, numbers + count, Number{0});
    if (field + 1 == planes.count && planes.rotated)
      append_rotated(codes, count, width, numbers);
    else
      append(codes, count, width, numbers);
  }
  return Status::kOk;
}

// The low 16 bits of each number -> float32. Subnormal ones are converted as integers: no processor mode
// that flushes float32's changes them.
template <bool kRotated>
void widen_halves(uint32_t* numbers, int64_t count) {
  constexpr uint32_t kBias = uint32_t{112} << 23;
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t field = numbers[i] & 0xffff;
    const uint32_t half = kRotated ? (field >> 1 | field << 15) & 0xffff : field;
    const uint32_t size = half & 0x7fff;
    const float tiny = static_cast<float>(static_cast<int32_t>(size)) * (1.0f / (1 << 24));
    uint32_t subnormal;
    std::memcpy(&subnormal, &tiny, sizeof subnormal);
    const uint32_t normal = (size << 13) + kBias + (size >= 0x7c00 ? kBias : 0);
    numbers[i] = (half & 0x8000) << 16 | (size < 0x400 ? subnormal : normal);
  }
}

template <bool kRotated>
void widen(Widening from, uint32_t* numbers, int64_t count) {
  if (from == Widening::kFloat16) return widen_halves<kRotated>(numbers, count);
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t field = numbers[i] & 0xffff;
    numbers[i] = (kRotated ? field >> 1 | field << 15 : field) << 16;
  }
}

constexpr int kMostFields = 32;

// A field that is decoded, and those behind it that are stored as they are. Numbers get all of them while
// they are in the cache.
struct Fields {
  const LaneKernel* kernel;
  uint32_t* numbers;
  const int32_t* codes;  // null: the numbers begin as this field's codes
  int width;
  bool rotated;  // these are the last fields, and numbers are rotated
  int stored_count;
  PackedBits stored[kMostFields];
  int stored_widths[kMostFields];
  Widening widening;    // these are the last fields, and numbers are widened
  bool widens_rotated;  // ... and rotated in the 16 bits before
};

void append_block(void* context, int64_t begin, int64_t count) {
  const Fields& fields = *static_cast<const Fields*>(context);
  uint32_t* numbers = fields.numbers + begin;
  if (fields.codes != nullptr) {
    if (fields.rotated && fields.stored_count == 0)
      append_rotated(fields.codes + begin, count, fields.width, numbers);
    else
      append(fields.codes + begin, count, fields.width, numbers);
  }
  for (int i = 0; i < fields.stored_count; ++i)
    raw::append(fields.stored[i], begin, count, *fields.kernel, fields.stored_widths[i],
                fields.rotated && i + 1 == fields.stored_count, numbers);
  if (fields.widening != Widening::kNone)
    (fields.widens_rotated ? widen<true> : widen<false>)(fields.widening, numbers, count);
}

bool is_stored(Bytes payload) {
  return payload.size >= 2 && payload.data[0] == static_cast<uint8_t>(BackEnd::kRaw);
}

// Numbers that end as 32 bits, the size of codes: the first field is decoded in place.
Status decode_words(const Planes& planes, Geometry geometry, const LaneKernel& kernel, uint32_t* numbers,
                    int* defective) {
  const int64_t count = geometry.count();
  for (int field = 0, next; field < planes.count; field = next) {
    Fields fields{&kernel, numbers, nullptr, planes.widths[field], false, 0, {}, {}, Widening::kNone, false};
    Status stored = Status::kOk;
    for (next = field + 1; next < planes.count && is_stored(planes.payloads[next]); ++next) {
      stored = raw::open(planes.payloads[next], count, &fields.stored[fields.stored_count]);
      if (stored != Status::kOk) break;
      fields.stored_widths[fields.stored_count++] = planes.widths[next];
    }
    if (next == planes.count) {
      fields.widening = planes.widening;
      fields.rotated = planes.rotated && planes.widening == Widening::kNone;
      fields.widens_rotated = planes.rotated;
    }
    int32_t* const codes = field == 0 ? reinterpret_cast<int32_t*>(numbers) : room_for(count);
    if (field > 0) fields.codes = codes;
    *defective = field;
    const Status status = decode_into(planes.payloads[field], geometry, kernel, {codes, nullptr, 0, append_block, &fields});
    if (status != Status::kOk) return status;
    *defective = next;
    if (stored != Status::kOk) return stored;
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
  const int bits = planes_bits(planes.widths, planes.count);
  if (planes.widening != Widening::kNone) {
    if (bits != 16) return Status::kBadHeader;
    return decode_words(planes, geometry, kernel, static_cast<uint32_t*>(numbers), defective);
  }
  switch (bits) {
    case 8:
      return decode_as(planes, geometry, kernel, static_cast<uint8_t*>(numbers), defective);
    case 16:
      return decode_as(planes, geometry, kernel, static_cast<uint16_t*>(numbers), defective);
    case 32:
      return decode_words(planes, geometry, kernel, static_cast<uint32_t*>(numbers), defective);
    case 64:
      return decode_as(planes, geometry, kernel, static_cast<uint64_t*>(numbers), defective);
    default:
      return Status::kBadHeader;
  }
}

}  // namespace onnxcomp::codec
