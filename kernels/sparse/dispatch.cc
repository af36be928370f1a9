#include "cpu/features.h"
#include "cpu/kernel_choice.h"
#include "sparse/kernels.h"
#include "sparse/matmul.h"

namespace onnxcomp::sparse {
namespace {

std::vector<const Kernel*> detect_kernels() {
  std::vector<const Kernel*> found;
  [[maybe_unused]] const CpuFeatures& cpu = cpu_features();
#ifdef ONNXCOMP_HAVE_AVX512
  if (cpu.avx512f && cpu.avx2 && cpu.fma) found.push_back(&kAvx512);
#endif
#ifdef ONNXCOMP_HAVE_AVX2
  if (cpu.avx2 && cpu.fma) found.push_back(&kAvx2);
#endif
#ifdef ONNXCOMP_HAVE_NEON
  if (cpu.neon) found.push_back(&kNeon);
#endif
  found.push_back(&kPortable);
  return found;
}

}  // namespace

const std::vector<const Kernel*>& available_kernels() {
  static const std::vector<const Kernel*> kernels = detect_kernels();
  return kernels;
}

const Kernel* find_kernel(const char* isa) { return kernel_named(available_kernels(), isa); }

}  // namespace onnxcomp::sparse
