#include "bindings/planes.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>

#include <deque>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "bindings/view.h"
#include "codec/dispatch.h"
#include "codec/planes.h"

namespace nb = nanobind;

namespace onnxcomp {
namespace {

using Output = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// (field, what is wrong with its payload); an empty message when nothing is.
std::pair<int, std::string> decode_planes(const nb::list& payloads, const nb::bytes& widths,
                                          bool rotated, int widening,
                                          std::tuple<int64_t, int64_t, int64_t> shape, const Output& numbers,
                                          const std::string& isa) {
  const codec::Geometry geometry = {std::get<0>(shape), std::get<1>(shape), std::get<2>(shape)};
  if (!geometry.valid()) throw nb::value_error("a chunk holds at most 1048576 codes");
  const codec::LaneKernel* kernel = codec::find_kernel(isa.c_str());
  if (kernel == nullptr) throw nb::value_error(("this processor has no decoder named " + isa).c_str());
  const auto count = static_cast<int>(payloads.size());
  const auto* bits = static_cast<const uint8_t*>(widths.data());
  const int size = widths.size() == payloads.size() ? codec::planes_bits(bits, count) : 0;
  if (size != 8 && size != 16 && size != 32 && size != 64)
    throw nb::value_error("the widths of the fields do not make up numbers of 8, 16, 32 or 64 bits");
  if (widening < 0 || widening > 2 || (widening > 0 && size != 16))
    throw nb::value_error("only floats of 16 bits are widened");
  const auto item = static_cast<size_t>(widening > 0 ? 4 : size / 8);
  if (numbers.size() != static_cast<size_t>(geometry.count()) * item ||
      reinterpret_cast<uintptr_t>(numbers.data()) % item != 0)
    throw nb::value_error("out is no aligned array of as many numbers as codes");
  std::deque<View> views;  // they cannot move
  std::vector<codec::Bytes> bytes;
  for (const nb::handle payload : payloads) bytes.push_back(views.emplace_back(payload).bytes());
  int field = 0;
  codec::Status status;
  {
    nb::gil_scoped_release unlocked;
    status = codec::decode_planes({bytes.data(), bits, count, rotated, static_cast<codec::Widening>(widening)},
                                  geometry, *kernel, numbers.data(), &field);
  }
  return {field, status == codec::Status::kOk ? "" : codec::describe(status)};
}

}  // namespace

void bind_planes(nb::module_& module) {
  using nb::literals::operator""_a;
  module.def("decode_planes", &decode_planes, "payloads"_a, "widths"_a, "rotated"_a, "widening"_a,
             "shape"_a, "numbers"_a, "isa"_a);
}

}  // namespace onnxcomp
