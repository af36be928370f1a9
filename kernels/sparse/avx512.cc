#include <immintrin.h>

#include "sparse/avx_transpose.h"
#include "sparse/column_loops.h"
#include "sparse/kernels.h"
#include "sparse/wide_loops.h"

namespace onnxcomp::sparse {
namespace {

struct Avx512Vector {
  static constexpr int64_t kLanes = 16;
  static constexpr bool kSpreads = true;
  __m512 lanes;

  static Avx512Vector load(const float* from) { return {_mm512_loadu_ps(from)}; }
  static void store(Avx512Vector v, float* to) { _mm512_storeu_ps(to, v.lanes); }
  static Avx512Vector broadcast(float value) { return {_mm512_set1_ps(value)}; }
  static Avx512Vector spread(const float* x, const int32_t* indices) {
    __m512 lanes = _mm512_castps128_ps512(_mm_broadcast_ss(x + indices[0]));
    lanes = _mm512_insertf32x4(lanes, _mm_broadcast_ss(x + indices[1]), 1);
    lanes = _mm512_insertf32x4(lanes, _mm_broadcast_ss(x + indices[2]), 2);
    return {_mm512_insertf32x4(lanes, _mm_broadcast_ss(x + indices[3]), 3)};
  }
  static Avx512Vector add(Avx512Vector a, Avx512Vector b) { return {_mm512_add_ps(a.lanes, b.lanes)}; }
  // b where either is NaN
  static Avx512Vector maximum(Avx512Vector a, Avx512Vector b) { return {_mm512_max_ps(a.lanes, b.lanes)}; }
  static Avx512Vector multiply_add(Avx512Vector a, Avx512Vector b, Avx512Vector sum) {
    return {_mm512_fmadd_ps(a.lanes, b.lanes, sum.lanes)};
  }

  static void transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
    transpose_square(from, from_stride, to, to_stride);
  }
};

}  // namespace

const Kernel kAvx512 = {"avx512", fill_panel<Avx512Vector>, multiply_panel<Avx512Vector>,
                        multiply_row<Avx512Vector>, multiply_columns<Avx512Vector>};

}  // namespace onnxcomp::sparse
