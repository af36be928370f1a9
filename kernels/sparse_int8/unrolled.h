#pragma once

// Sums stay in registers only if no loop over them is left before gcc looks for that.
#ifdef __GNUC__
#define ONNXCOMP_UNROLLED _Pragma("GCC unroll 16")
#else
#define ONNXCOMP_UNROLLED
#endif
