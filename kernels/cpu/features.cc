#include "cpu/features.h"

#include <cstdint>

#if defined(__x86_64__) || defined(_M_X64)
#define ONNXCOMP_X86 1
#ifdef _MSC_VER
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#elif defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#elif defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(_M_ARM64)
#include <windows.h>
#endif

namespace onnxcomp {
namespace {

#ifdef ONNXCOMP_X86

struct CpuidLeaf {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

CpuidLeaf cpuid(uint32_t leaf, uint32_t subleaf) noexcept {
  CpuidLeaf result;
#ifdef _MSC_VER
  int highest[4], registers[4];
  __cpuid(highest, 0);
  if (static_cast<uint32_t>(highest[0]) < leaf) return result;
  __cpuidex(registers, static_cast<int>(leaf), static_cast<int>(subleaf));
  result.eax = static_cast<uint32_t>(registers[0]);
  result.ebx = static_cast<uint32_t>(registers[1]);
  result.ecx = static_cast<uint32_t>(registers[2]);
  result.edx = static_cast<uint32_t>(registers[3]);
#else
  __get_cpuid_count(leaf, subleaf, &result.eax, &result.ebx, &result.ecx, &result.edx);
#endif
  return result;
}

// The register states the operating system saves: extended control register 0.
uint64_t saved_states() noexcept {
#ifdef _MSC_VER
  return _xgetbv(0);
#else
  // The intrinsic would need -mxsave for this whole file.
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
#endif
}

bool bit(uint32_t word, int index) noexcept { return (word >> index) & 1u; }

// Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, CPUID.
CpuFeatures detect() noexcept {
  CpuFeatures found;
  const CpuidLeaf basic = cpuid(1, 0);
  found.crc32c = bit(basic.ecx, 20);
  const bool has_xgetbv = bit(basic.ecx, 27);
  if (!has_xgetbv) return found;
  const uint64_t saved = saved_states();
  const bool saves_ymm = (saved & 0x06) == 0x06;
  const bool saves_zmm = (saved & 0xe6) == 0xe6;
  const CpuidLeaf extended = cpuid(7, 0);
  const CpuidLeaf further = bit(extended.eax, 0) ? cpuid(7, 1) : CpuidLeaf();
  found.avx2 = saves_ymm && bit(extended.ebx, 5);
  found.fma = saves_ymm && bit(basic.ecx, 12);
  found.avx_vnni = saves_ymm && bit(further.eax, 4);
  found.avx512f = saves_zmm && bit(extended.ebx, 16);
  found.avx512bw = saves_zmm && bit(extended.ebx, 30);
  found.avx512vl = saves_zmm && bit(extended.ebx, 31);
  found.avx512_vnni = saves_zmm && bit(extended.ecx, 11);
  found.avx512_vpopcntdq = saves_zmm && bit(extended.ecx, 14);
  return found;
}

#else

#if defined(__APPLE__)
bool has_feature(const char* name) noexcept {
  int32_t value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}
#endif

CpuFeatures detect() noexcept {
  CpuFeatures found;
#if defined(__aarch64__) || defined(_M_ARM64)
  found.neon = true;  // part of the base architecture
#if defined(__linux__)
  // Documentation/arch/arm64/elf_hwcaps.rst of Linux; its header may be older than the processor.
  const unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
  found.crc32c = (first >> 7) & 1;    // HWCAP_CRC32
  found.dotprod = (first >> 20) & 1;  // HWCAP_ASIMDDP
  found.i8mm = (second >> 13) & 1;    // HWCAP2_I8MM
#elif defined(__APPLE__)
  found.crc32c = true;
  found.dotprod = has_feature("hw.optional.arm.FEAT_DotProd");
  found.i8mm = has_feature("hw.optional.arm.FEAT_I8MM");
#elif defined(_M_ARM64)
  found.crc32c = IsProcessorFeaturePresent(PF_ARM_V8_CRC32_INSTRUCTIONS_AVAILABLE) != 0;
#endif
#endif
  return found;
}

#endif

}  // namespace

const CpuFeatures& cpu_features() noexcept {
  static const CpuFeatures features = detect();
  return features;
}

}  // namespace onnxcomp
