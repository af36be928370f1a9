#include "sparse_int8/neon_loops.h"

namespace onnxcomp::sparse_int8 {
namespace {

// FEAT_I8MM: sums of four products of u8 and s8.
struct MixedProducts {
  using Quads = uint8x16_t;

  static Quads quads(uint8x16_t x) { return x; }
  static const int32_t* bias(const Scaling& scaling) { return scaling.bias; }

  template <int kRow>
  static int32x4_t multiply_add(int32x4_t sum, uint8x16_t quads, int8x16_t values) {
    return vusdotq_laneq_s32(sum, quads, values, kRow);
  }
};

}  // namespace

const Kernel kNeonI8mm = kernel_of<MixedProducts>("neon_i8mm");

}  // namespace onnxcomp::sparse_int8
