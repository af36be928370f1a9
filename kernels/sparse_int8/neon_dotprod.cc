#include "sparse_int8/neon_loops.h"

namespace onnxcomp::sparse_int8 {
namespace {

// FEAT_DotProd: sums of four products of s8.
struct SignedProducts : CentredQuads {
  template <int kRow>
  static int32x4_t multiply_add(int32x4_t sum, int8x16_t quads, int8x16_t values) {
    return vdotq_laneq_s32(sum, quads, values, kRow);
  }
};

}  // namespace

const Kernel kNeonDotProd = kernel_of<SignedProducts>("neon_dotprod");

}  // namespace onnxcomp::sparse_int8
