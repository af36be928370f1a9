#include "bindings/restoring.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "restoring/restoring.h"

namespace nb = nanobind;

namespace onnxcomp {
namespace {

using Values = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Scales = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Payload = std::tuple<int, uint64_t, size_t, uint32_t>;
using Shape = std::tuple<int64_t, int64_t, int64_t>;

restoring::Chunk chunk_of(const std::vector<Payload>& payloads, const Shape& shape, const Values& values,
                          size_t tensor) {
  restoring::Chunk chunk{};
  for (const auto& [file, offset, length, checksum] : payloads)
    chunk.payloads.push_back({file, offset, length, checksum});
  std::tie(chunk.geometry.rows, chunk.geometry.columns, chunk.geometry.kernel) = shape;
  if (!chunk.geometry.valid() || chunk.geometry.count() == 0)
    throw nb::value_error("a chunk holds 1 to 1048576 codes");
  chunk.values = values.data();
  chunk.size = values.size();
  chunk.tensor = tensor;
  return chunk;
}

// A list of chunks, and the arrays that they are in.
class Restoring {
 public:
  void add_tensor(const Values& values, uint64_t hash) {
    tensors_.push_back({{values.data(), values.size()}, hash});
    arrays_.push_back(values);
  }

  void add_planes(const std::vector<Payload>& payloads, const Shape& shape, const Values& values, size_t tensor,
                  const nb::bytes& widths, bool rotated, int widening) {
    restoring::Chunk chunk = chunk_of(payloads, shape, values, tensor);
    const auto* bits = static_cast<const uint8_t*>(widths.data());
    chunk.widths.assign(bits, bits + widths.size());
    chunk.rotated = rotated;
    chunk.widening = static_cast<codec::Widening>(widening);
    const int size = codec::planes_bits(bits, static_cast<int>(widths.size()));
    const bool known = size == 8 || size == 16 || size == 32 || size == 64;
    if (!known || widening < 0 || widening > 2 || (widening > 0 && size != 16))
      throw nb::value_error("fields do not make up numbers of 8, 16, 32 or 64 bits");
    add(std::move(chunk), widths.size(), widening > 0 ? 4 : size / 8);
  }

  void add_scaled(const std::vector<Payload>& payloads, const Shape& shape, const Values& values, size_t tensor,
                  const Scales& scales, int64_t length, int64_t inner) {
    restoring::Chunk chunk = chunk_of(payloads, shape, values, tensor);
    const int64_t count = chunk.geometry.count();
    chunk.scaled = {scales.data(), static_cast<int64_t>(scales.size()), length, inner};
    if (chunk.scaled.count != 1 && chunk.scaled.count != chunk.geometry.rows)
      throw nb::value_error("there must be one scale, or one for each row");
    if (length < 0 || length > count || inner < 0 || inner > count || (length > 0) != (inner > 0) ||
        (length > 0 && count % (length * inner) != 0))
      throw nb::value_error("sequences do not make up the chunk");
    scales_.push_back(scales);
    add(std::move(chunk), 1, 4);
  }

  // No more is added from here on.
  void run() {
    if (!all_) all_.emplace(std::move(chunks_), tensors_);
    nb::gil_scoped_release unlocked;
    all_->run();
  }

  std::pair<int64_t, int64_t> defects() const {
    if (!all_) return {-1, -1};
    return {all_->defective_chunk(), all_->defective_tensor()};
  }

 private:
  void add(restoring::Chunk chunk, size_t payloads, int item) {
    if (all_) throw nb::value_error("it runs already");
    if (chunk.payloads.size() != payloads) throw nb::value_error("there must be a payload for each field");
    if (chunk.size != static_cast<size_t>(chunk.geometry.count()) * static_cast<size_t>(item))
      throw nb::value_error("values are not as many as codes");
    if (chunk.tensor >= tensors_.size()) throw nb::value_error("there is no such tensor");
    const codec::Bytes whole = tensors_[chunk.tensor].values;
    if (chunk.values < whole.data || chunk.values + chunk.size > whole.data + whole.size)
      throw nb::value_error("values are outside the tensor");
    chunks_.push_back(std::move(chunk));
  }

  std::vector<restoring::Chunk> chunks_;
  std::vector<restoring::Tensor> tensors_;
  std::vector<Values> arrays_;
  std::vector<Scales> scales_;
  std::optional<restoring::Restoring> all_;
};

}  // namespace

void bind_restoring(nb::module_& module) {
  using nb::literals::operator""_a;
  module.attr("restores_files") = restoring::available();
  nb::class_<Restoring>(module, "Restoring")
      .def(nb::init<>())
      .def("add_tensor", &Restoring::add_tensor, "values"_a, "hash"_a)
      .def("add_planes", &Restoring::add_planes, "payloads"_a, "shape"_a, "values"_a, "tensor"_a, "widths"_a,
           "rotated"_a, "widening"_a)
      .def("add_scaled", &Restoring::add_scaled, "payloads"_a, "shape"_a, "values"_a, "tensor"_a, "scales"_a,
           "length"_a, "inner"_a)
      .def("run", &Restoring::run)
      .def("defects", &Restoring::defects);
}

}  // namespace onnxcomp
