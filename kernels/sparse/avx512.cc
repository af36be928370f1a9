#include <immintrin.h>

#include "sparse/avx_transpose.h"
#include "sparse/broad_loops.h"
#include "sparse/column_loops.h"
#include "sparse/kernels.h"
#include "sparse/wide_loops.h"

namespace onnxcomp::sparse {
namespace {

struct Avx512Vector {
  static constexpr int64_t kLanes = 16;
  __m512 lanes;

  static void prefetch(const void* from) {
    _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0);
  }
  static Avx512Vector load(const float* from) { return {_mm512_loadu_ps(from)}; }
  static void store(Avx512Vector v, float* to) { _mm512_storeu_ps(to, v.lanes); }
  static Avx512Vector broadcast(float value) { return {_mm512_set1_ps(value)}; }
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

// A single token gains nothing from longer vectors: they leave more entries over.
void multiply_row(const PackedWeights& weights, const float* bias, const float* x, TileRange tiles,
                  float* y) {
  kAvx2.multiply_row(weights, bias, x, tiles, y);
}

}  // namespace

const Kernel kAvx512 = {"avx512",
                        fill_panel<Avx512Vector, kPanelTokens>,
                        fill_panel<Avx512Vector, kBroadColumns>,
                        multiply_panel<Avx512Vector>,
                        multiply_broad_panel<Avx512Vector>,
                        multiply_row,
                        multiply_columns<Avx512Vector>,
                        multiply_copied_columns<Avx512Vector>};

}  // namespace onnxcomp::sparse
