#include "bindings/zstd.h"

#include <memory>

#include "zstd/frame.h"

namespace nb = nanobind;

namespace onnxcomp {
namespace {

// The bytes of a frame; text says what is wrong with it.
nb::object decode_frame(const nb::bytes& frame, size_t size) {
  const auto work = std::make_unique<zstd::Workspace>();
  const std::unique_ptr<uint8_t[]> out(new uint8_t[size]);
  zstd::Status status;
  {
    nb::gil_scoped_release unlocked;
    status = zstd::decode_frame({static_cast<const uint8_t*>(frame.data()), frame.size()}, out.get(), size,
                                work.get());
  }
  if (status != zstd::Status::kOk) return nb::str(zstd::describe(status));
  return nb::bytes(out.get(), size);
}

}  // namespace

void bind_zstd(nb::module_& module) {
  using nb::literals::operator""_a;
  module.def("decode_zstd", &decode_frame, "frame"_a, "size"_a);
}

}  // namespace onnxcomp
