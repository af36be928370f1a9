#include "codec/dispatch.h"

#include "cpu/features.h"
#include "cpu/kernel_choice.h"

namespace onnxcomp::codec {

const std::vector<const LaneKernel*>& available_kernels() {
  [[maybe_unused]] const CpuFeatures& cpu = cpu_features();
  static const std::vector<const LaneKernel*> kernels = supported_kernels<LaneKernel>({
#ifdef ONNXCOMP_HAVE_AVX512
      {kAvx512Lanes, cpu.avx512f && cpu.avx512bw && cpu.avx512vl},
#endif
#ifdef ONNXCOMP_HAVE_AVX2
      {kAvx2Lanes, cpu.avx2},
#endif
#ifdef ONNXCOMP_HAVE_NEON
      {kNeonLanes, cpu.neon},
#endif
      {kPortableLanes, true},
  });
  return kernels;
}

const LaneKernel* find_kernel(const char* isa) { return kernel_named(available_kernels(), isa); }

}  // namespace onnxcomp::codec
