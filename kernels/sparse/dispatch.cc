#include <cstring>

#include "cpu/features.h"
#include "sparse/kernels.h"
#include "sparse/matmul.h"

namespace onnxcomp::sparse {
namespace {

std::vector<const Kernel*> detect_kernels() {
  std::vector<const Kernel*> found;
  [[maybe_unused]] const CpuFeatures& cpu = cpu_features();
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

const Kernel* find_kernel(const char* isa) {
  if (std::strcmp(isa, "auto") == 0) return available_kernels().front();
  for (const Kernel* kernel : available_kernels()) {
    if (std::strcmp(isa, kernel->isa) == 0) return kernel;
  }
  return nullptr;
}

}  // namespace onnxcomp::sparse
