#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/string.h>

#include <map>
#include <string>

#include "bindings/binary.h"
#include "bindings/codec.h"
#include "bindings/planes.h"
#include "bindings/restoring.h"
#include "bindings/sparse.h"
#include "bindings/sparse_int8.h"
#include "bindings/trellis.h"
#include "bindings/zstd.h"
#include "cpu/features.h"

namespace onnxcomp {
namespace {

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
  module.def("cpu_features", &onnxcomp::features);
  onnxcomp::bind_binary(module);
  onnxcomp::bind_codec(module);
  onnxcomp::bind_planes(module);
  onnxcomp::bind_restoring(module);
  onnxcomp::bind_sparse(module);
  onnxcomp::bind_sparse_int8(module);
  onnxcomp::bind_trellis(module);
  onnxcomp::bind_zstd(module);
}
