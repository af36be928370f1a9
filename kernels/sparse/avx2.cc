#include <immintrin.h>

#include "sparse/avx_transpose.h"
#include "sparse/column_loops.h"
#include "sparse/kernels.h"
#include "sparse/wide_loops.h"

namespace onnxcomp::sparse {
namespace {

struct Avx2Vector {
  static constexpr int64_t kLanes = 8;
  static constexpr bool kSpreads = true;
  __m256 lanes;

  static Avx2Vector load(const float* from) { return {_mm256_loadu_ps(from)}; }
  static void store(Avx2Vector v, float* to) { _mm256_storeu_ps(to, v.lanes); }
  static Avx2Vector broadcast(float value) { return {_mm256_set1_ps(value)}; }
  static Avx2Vector spread(const float* x, const int32_t* indices) {
    const __m256 low = _mm256_castps128_ps256(_mm_broadcast_ss(x + indices[0]));
    return {_mm256_insertf128_ps(low, _mm_broadcast_ss(x + indices[1]), 1)};
  }
  static Avx2Vector add(Avx2Vector a, Avx2Vector b) { return {_mm256_add_ps(a.lanes, b.lanes)}; }
  // b where either is NaN
  static Avx2Vector maximum(Avx2Vector a, Avx2Vector b) { return {_mm256_max_ps(a.lanes, b.lanes)}; }
  static Avx2Vector multiply_add(Avx2Vector a, Avx2Vector b, Avx2Vector sum) {
    return {_mm256_fmadd_ps(a.lanes, b.lanes, sum.lanes)};
  }

  static void transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
    transpose_square(from, from_stride, to, to_stride);
  }
};

}  // namespace

const Kernel kAvx2 = {"avx2", fill_panel<Avx2Vector>, multiply_panel<Avx2Vector>,
                      multiply_row<Avx2Vector>, multiply_columns<Avx2Vector>};

}  // namespace onnxcomp::sparse
