#pragma once

namespace onnxcomp {

// What this processor can run and the operating system lets us run (wide registers saved on a
// context switch).
struct CpuFeatures {
  bool avx2 = false;
  bool fma = false;
  bool avx512f = false;
  bool avx512bw = false;
  bool avx512vl = false;
  bool avx512_vnni = false;
  bool avx512_vpopcntdq = false;
  bool avx_vnni = false;
  bool crc32c = false;  // SSE4.2, or ARM's optional CRC32
  bool neon = false;
  bool dotprod = false;  // FEAT_DotProd
  bool i8mm = false;     // FEAT_I8MM
};

const CpuFeatures& cpu_features() noexcept;

}  // namespace onnxcomp
