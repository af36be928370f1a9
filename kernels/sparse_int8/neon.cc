#include "sparse_int8/neon_loops.h"

namespace onnxcomp::sparse_int8 {
namespace {

// What every processor has: products of s8, in 16 bits, which are added up in 32.
struct Products : CentredQuads {
  template <int kRow>
  static int32x4_t multiply_add(int32x4_t sum, int8x16_t quads, int8x16_t values) {
    const int8x16_t value =
        vreinterpretq_s8_s32(vdupq_laneq_s32(vreinterpretq_s32_s8(values), kRow));
    const int32x4_t low = vpaddlq_s16(vmull_s8(vget_low_s8(quads), vget_low_s8(value)));
    const int32x4_t high = vpaddlq_s16(vmull_high_s8(quads, value));
    const int32x4_t products = vpaddq_s32(low, high);
    return vreinterpretq_s32_u32(  // sums wrap around
        vaddq_u32(vreinterpretq_u32_s32(sum), vreinterpretq_u32_s32(products)));
  }
};

}  // namespace

const Kernel kNeon = kernel_of<Products>("neon");

}  // namespace onnxcomp::sparse_int8
