#include "codec/dispatch.h"

#include "cpu/features.h"
#include "cpu/kernel_choice.h"

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

const LaneKernel* find_kernel(const char* isa) { return kernel_named(available_kernels(), isa); }

}  // namespace onnxcomp::codec
