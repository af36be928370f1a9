#include "sparse_int8/dispatch.h"

#include "cpu/features.h"
#include "cpu/kernel_choice.h"

namespace onnxcomp::sparse_int8 {

const std::vector<const Kernel*>& available_kernels() {
  [[maybe_unused]] const CpuFeatures& cpu = cpu_features();
  static const std::vector<const Kernel*> kernels = supported_kernels<Kernel>({
#ifdef ONNXCOMP_HAVE_AVX512
      {kAvx512, cpu.avx512f && cpu.avx512bw && cpu.avx512vl && cpu.avx512_vnni},
#endif
#ifdef ONNXCOMP_HAVE_AVX2
      {kAvx2, cpu.avx2},
#endif
#ifdef ONNXCOMP_HAVE_NEON_I8MM
      {kNeonI8mm, cpu.i8mm},
#endif
#ifdef ONNXCOMP_HAVE_NEON_DOTPROD
      {kNeonDotProd, cpu.dotprod},
#endif
#ifdef ONNXCOMP_HAVE_NEON
      {kNeon, cpu.neon},
#endif
      {kPortable, true},
  });
  return kernels;
}

const Kernel* find_kernel(const char* isa) { return kernel_named(available_kernels(), isa); }

}  // namespace onnxcomp::sparse_int8
