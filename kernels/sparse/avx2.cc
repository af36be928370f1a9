#include <immintrin.h>

#include "sparse/avx_transpose.h"
#include "sparse/broad_loops.h"
#include "sparse/column_loops.h"
#include "sparse/kernels.h"
#include "sparse/wide_loops.h"

namespace onnxcomp::sparse {
namespace {

// Two indices, none of them negative, by one load: loads are what limits a single token.
struct IndexPair {
  uint64_t bits;

  explicit IndexPair(const int32_t* indices)
      : bits(static_cast<uint64_t>(
            _mm_cvtsi128_si64(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(indices))))) {}
  int64_t first() const { return static_cast<uint32_t>(bits); }
  int64_t second() const { return static_cast<int64_t>(bits >> 32); }
};

inline __m128 pick_pair(const float* x, const int32_t* indices) {
  const IndexPair pair(indices);
  return _mm_insert_ps(_mm_load_ss(x + pair.first()), _mm_load_ss(x + pair.second()), 0x10);
}

// x[indices[i]] for four of them, in less time than a gather.
inline __m128 pick_quad(const float* x, const int32_t* indices) {
  return _mm_movelh_ps(pick_pair(x, indices), pick_pair(x, indices + 2));
}

struct Avx2Vector {
  static constexpr int64_t kLanes = 8;
  static constexpr bool kSpreads = true;
  static constexpr bool kPicks = true;
  __m256 lanes;

  static void prefetch(const void* from) {
    _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0);
  }
  static Avx2Vector load(const float* from) { return {_mm256_loadu_ps(from)}; }
  static void store(Avx2Vector v, float* to) { _mm256_storeu_ps(to, v.lanes); }
  static Avx2Vector broadcast(float value) { return {_mm256_set1_ps(value)}; }
  static Avx2Vector spread(const float* x, const int32_t* indices) {
    const IndexPair pair(indices);
    const __m256 low = _mm256_castps128_ps256(_mm_broadcast_ss(x + pair.first()));
    return {_mm256_insertf128_ps(low, _mm_broadcast_ss(x + pair.second()), 1)};
  }
  static Avx2Vector pick(const float* x, const int32_t* indices) {
    const __m256 low = _mm256_castps128_ps256(pick_quad(x, indices));
    return {_mm256_insertf128_ps(low, pick_quad(x, indices + 4), 1)};
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

const Kernel kAvx2 = {"avx2",
                      fill_panel<Avx2Vector, kPanelTokens>,
                      fill_panel<Avx2Vector, kBroadColumns>,
                      multiply_panel<Avx2Vector>,
                      multiply_broad_panel<Avx2Vector>,
                      multiply_row<Avx2Vector>,
                      multiply_columns<Avx2Vector>,
                      multiply_copied_columns<Avx2Vector>};

}  // namespace onnxcomp::sparse
