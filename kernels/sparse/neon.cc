#include <arm_neon.h>

#include "sparse/broad_loops.h"
#include "sparse/column_loops.h"
#include "sparse/kernels.h"
#include "sparse/wide_loops.h"

namespace onnxcomp::sparse {
namespace {

struct NeonVector {
  static constexpr int64_t kLanes = 8;
  static constexpr bool kSpreads = true;
  static constexpr bool kPicks = false;

  float32x4_t low;
  float32x4_t high;

  static void prefetch(const void* from) {
#ifdef _MSC_VER
    __prefetch(from);
#else
    __builtin_prefetch(from);
#endif
  }
  static NeonVector load(const float* from) { return {vld1q_f32(from), vld1q_f32(from + 4)}; }
  static void store(NeonVector v, float* to) {
    vst1q_f32(to, v.low);
    vst1q_f32(to + 4, v.high);
  }
  static NeonVector broadcast(float value) { return {vdupq_n_f32(value), vdupq_n_f32(value)}; }
  static NeonVector spread(const float* x, const int32_t* indices) {
    return {vdupq_n_f32(x[indices[0]]), vdupq_n_f32(x[indices[1]])};
  }
  static NeonVector add(NeonVector a, NeonVector b) {
    return {vaddq_f32(a.low, b.low), vaddq_f32(a.high, b.high)};
  }
  // NaN where either is
  static NeonVector maximum(NeonVector a, NeonVector b) {
    return {vmaxq_f32(a.low, b.low), vmaxq_f32(a.high, b.high)};
  }
  static NeonVector multiply_add(NeonVector a, NeonVector b, NeonVector sum) {
    return {vfmaq_f32(sum.low, a.low, b.low), vfmaq_f32(sum.high, a.high, b.high)};
  }

  static void transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
    for (int64_t i = 0; i < kLanes; i += 4) {
      for (int64_t j = 0; j < kLanes; j += 4) {
        // vst4 interleaves four registers: register r becomes column r of each stored row.
        const float* block = from + i * from_stride + j;
        float32x4x4_t rows;
        for (int r = 0; r < 4; ++r) rows.val[r] = vld1q_f32(block + r * from_stride);
        float transposed[16];
        vst4q_f32(transposed, rows);
        for (int r = 0; r < 4; ++r)
          vst1q_f32(to + (j + r) * to_stride + i, vld1q_f32(transposed + 4 * r));
      }
    }
  }
};

}  // namespace

const Kernel kNeon = {"neon",
                      fill_panel<NeonVector, kPanelTokens>,
                      fill_panel<NeonVector, kBroadColumns>,
                      multiply_panel<NeonVector>,
                      multiply_broad_panel<NeonVector>,
                      multiply_row<NeonVector>,
                      multiply_columns<NeonVector>,
                      multiply_copied_columns<NeonVector>};

}  // namespace onnxcomp::sparse
