#include "codec/dispatch.h"

#include <cstring>

#include "cpu/features.h"

namespace onnxcomp::codec {
namespace {

std::vector<const LaneKernel*> detect_kernels() {
  std::vector<const LaneKernel*> found;
  [[maybe_unused]] const CpuFeatures& cpu = cpu_features();
#ifdef ONNXCOMP_HAVE_AVX512
  if (cpu.avx512f && cpu.avx512bw && cpu.avx512vl) found.push_back(&kAvx512Lanes);
#endif
#ifdef ONNXCOMP_HAVE_AVX2
  if (cpu.avx2) found.push_back(&kAvx2Lanes);
#endif
#ifdef ONNXCOMP_HAVE_NEON
  if (cpu.neon) found.push_back(&kNeonLanes);
#endif
  found.push_back(&kPortableLanes);
  return found;
}

}  // namespace

const std::vector<const LaneKernel*>& available_kernels() {
  static const std::vector<const LaneKernel*> kernels = detect_kernels();
  return kernels;
}

const LaneKernel* find_kernel(const char* isa) {
  if (std::strcmp(isa, "auto") == 0) return available_kernels().front();
  for (const LaneKernel* kernel : available_kernels()) {
    if (std::strcmp(isa, kernel->isa) == 0) return kernel;
  }
  return nullptr;
}

}  // namespace onnxcomp::codec
