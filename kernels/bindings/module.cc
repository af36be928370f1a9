#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "bindings/binary.h"
#include "bindings/codec.h"
#include "bindings/planes.h"
#include "bindings/restoring.h"
#include "bindings/sparse_conv.h"
#include "bindings/sparse_int8.h"
#include "bindings/trellis.h"
#include "bindings/zstd.h"
#include "cpu/features.h"
#include "sparse/matmul.h"

namespace nb = nanobind;

namespace onnxcomp {
namespace {

template <class T, size_t kRank>
using Array = nb::ndarray<const T, nb::ndim<kRank>, nb::c_contig, nb::device::cpu>;
using Result = nb::ndarray<nb::numpy, float, nb::ndim<2>>;

int64_t length(size_t size) { return static_cast<int64_t>(size); }

Result sparse_matmul(const Array<float, 2>& x, const Array<float, 2>& values,
                     const Array<int32_t, 1>& indices, const Array<int32_t, 1>& offsets,
                     const std::optional<Array<float, 1>>& bias, int64_t in_features,
                     int64_t out_features, int64_t block_size, const std::string& isa) {
  const sparse::Kernel* kernel = sparse::find_kernel(isa.c_str());
  if (kernel == nullptr)
    throw nb::value_error(("this processor has no kernel named " + isa).c_str());
  const sparse::PackedWeights weights{values.data(), indices.data(), offsets.data(),
                                      in_features,   out_features,   block_size};
  const std::string defect = sparse::find_defect(
      weights, {length(values.size()), length(indices.size()), length(offsets.size())});
  if (!defect.empty()) throw nb::value_error(defect.c_str());
  if (length(x.shape(1)) != in_features)
    throw nb::value_error("the last dimension of x is not in_features");
  if (bias && length(bias->size()) != out_features)
    throw nb::value_error("the length of bias is not out_features");

  const size_t width = static_cast<size_t>(out_features);
  float* y = new float[x.shape(0) * width];
  nb::capsule owner(y, [](void* memory) noexcept { delete[] static_cast<float*>(memory); });
  {
    nb::gil_scoped_release unlocked;
    const sparse::MatMul matmul(*kernel, weights, bias ? bias->data() : nullptr, x.data(),
                                length(x.shape(0)), y);
    for (int64_t task = 0; task < matmul.fill_task_count(); ++task) matmul.fill(task);
    for (int64_t task = 0; task < matmul.multiply_task_count(); ++task) matmul.multiply(task);
  }
  return Result(y, {x.shape(0), width}, owner);
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const sparse::Kernel* kernel : sparse::available_kernels()) names.emplace_back(kernel->isa);
  return names;
}

std::map<std::string, bool> features() {
  const CpuFeatures& cpu = cpu_features();
  return {{"avx2", cpu.avx2},         {"fma", cpu.fma},
          {"avx512f", cpu.avx512f},   {"avx512bw", cpu.avx512bw},
          {"avx512vl", cpu.avx512vl}, {"avx512_vnni", cpu.avx512_vnni},
          {"avx_vnni", cpu.avx_vnni}, {"avx512_vpopcntdq", cpu.avx512_vpopcntdq},
          {"crc32c", cpu.crc32c},      {"neon", cpu.neon}};
}

}  // namespace
}  // namespace onnxcomp

NB_MODULE(_native, module) {
  using nb::literals::operator""_a;
  module.def("sparse_matmul", &onnxcomp::sparse_matmul, "x"_a, "values"_a, "indices"_a,
             "offsets"_a, "bias"_a.none(), "in_features"_a, "out_features"_a, "block_size"_a,
             "isa"_a);
  module.def("available_isas", &onnxcomp::available_isas);
  module.def("cpu_features", &onnxcomp::features);
  onnxcomp::bind_binary(module);
  onnxcomp::bind_codec(module);
  onnxcomp::bind_planes(module);
  onnxcomp::bind_restoring(module);
  onnxcomp::bind_sparse_conv(module);
  onnxcomp::bind_sparse_int8(module);
  onnxcomp::bind_trellis(module);
  onnxcomp::bind_zstd(module);
}
