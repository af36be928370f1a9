#include "cpu/features.h"
#include "cpu/kernel_choice.h"
#include "sparse/kernels.h"
#include "sparse/matmul.h"

namespace onnxcomp::sparse {

const std::vector<const Kernel*>& available_kernels() {
  [[maybe_unused]] const CpuFeatures& cpu = cpu_features();
  static const std::vector<const Kernel*> kernels = supported_kernels<Kernel>({
#ifdef ONNXCOMP_HAVE_AVX512
      {kAvx512, cpu.avx512f && cpu.avx2 && cpu.fma},
#endif
#ifdef ONNXCOMP_HAVE_AVX2
      {kAvx2, cpu.avx2 && cpu.fma},
#endif
#ifdef ONNXCOMP_HAVE_NEON
      {kNeon, cpu.neon},
#endif
      {kPortable, true},
  });
  return kernels;
}

const Kernel* find_kernel(const char* isa) { return kernel_named(available_kernels(), isa); }

}  // namespace onnxcomp::sparse
