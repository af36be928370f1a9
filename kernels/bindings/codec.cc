#include "bindings/codec.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <vector>

#include "bindings/kernels.h"
#include "bindings/view.h"
#include "codec/crc32c.h"
#include "codec/dispatch.h"
#include "codec/payload.h"
#include "codec/xxh3.h"

namespace nb = nanobind;

namespace onnxcomp {
namespace {

using Codes = nb::ndarray<const int32_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using DecodedCodes = nb::ndarray<int32_t, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Scales = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Weights = nb::ndarray<float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;

template <class Array>
codec::Geometry geometry_of(const Array& array) {
  const auto dimension = [&](size_t axis) { return static_cast<int64_t>(array.shape(axis)); };
  const codec::Geometry geometry = {dimension(0), dimension(1), dimension(2)};
  if (!geometry.valid()) throw nb::value_error("a chunk holds at most 1048576 codes");
  return geometry;
}

const codec::LaneKernel& kernel_of(const std::string& isa) {
  const codec::LaneKernel* kernel = codec::find_kernel(isa.c_str());
  if (kernel == nullptr) throw nb::value_error(("this processor has no decoder named " + isa).c_str());
  return *kernel;
}

nb::bytes encode(const Codes& codes, int back_end, int profile, bool prefer_speed,
                 const std::string& isa) {
  const codec::Geometry geometry = geometry_of(codes);
  const codec::LaneKernel& kernel = kernel_of(isa);
  std::vector<uint8_t> payload;
  {
    nb::gil_scoped_release unlocked;
    payload = codec::encode(codes.data(), geometry, kernel,
                            {static_cast<codec::BackEnd>(back_end), profile, prefer_speed});
  }
  return nb::bytes(payload.data(), payload.size());
}

// What is wrong with the payload; empty when nothing is.
std::string decode(nb::handle payload, const DecodedCodes& codes, const std::string& isa) {
  const View view(payload);
  const codec::Geometry geometry = geometry_of(codes);
  const codec::LaneKernel& kernel = kernel_of(isa);
  codec::Status status;
  {
    nb::gil_scoped_release unlocked;
    status = codec::decode(view.bytes(), geometry, kernel, codes.data());
  }
  return status == codec::Status::kOk ? "" : codec::describe(status);
}

std::string decode_scaled(nb::handle payload, const Scales& scales, const Weights& weights,
                          const std::string& isa) {
  const View view(payload);
  const codec::Geometry geometry = geometry_of(weights);
  const codec::LaneKernel& kernel = kernel_of(isa);
  const auto scale_count = static_cast<int64_t>(scales.size());
  if (scale_count != 1 && scale_count != geometry.rows)
    throw nb::value_error("there must be one scale, or one for each row");
  codec::Status status;
  {
    nb::gil_scoped_release unlocked;
    status = codec::decode_scaled(view.bytes(), geometry, kernel, scales.data(), scale_count, weights.data());
  }
  return status == codec::Status::kOk ? "" : codec::describe(status);
}

template <class Value, Value (*kChecksum)(codec::Bytes) noexcept>
Value checksum(nb::handle object) {
  const View view(object);
  nb::gil_scoped_release unlocked;
  return kChecksum(view.bytes());
}

}  // namespace

void bind_codec(nb::module_& module) {
  using nb::literals::operator""_a;
  module.def("encode_codes", &encode, "codes"_a, "back_end"_a, "profile"_a, "prefer_speed"_a,
             "isa"_a = "auto");
  module.def("decode_codes", &decode, "payload"_a, "codes"_a, "isa"_a);
  module.def("decode_scaled", &decode_scaled, "payload"_a, "scales"_a, "weights"_a, "isa"_a);
  module.def("crc32c", &checksum<uint32_t, codec::crc32c>, "data"_a);
  module.def("crc32c_portable", &checksum<uint32_t, codec::crc32c_portable>, "data"_a);
  module.def("xxh3_64", &checksum<uint64_t, codec::xxh3_64>, "data"_a);
  module.def("xxh3_64_portable", &checksum<uint64_t, codec::xxh3_64_portable>, "data"_a);
  module.def("available_decoders", [] { return isas_of(codec::available_kernels()); });
}

}  // namespace onnxcomp
