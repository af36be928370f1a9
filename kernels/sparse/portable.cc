#include "sparse/broad_loops.h"
#include "sparse/column_loops.h"
#include "sparse/kernels.h"
#include "sparse/wide_loops.h"

namespace onnxcomp::sparse {
namespace {

// Eight floats that any compiler turns into its target's own vectors.
struct PortableVector {
  static constexpr int64_t kLanes = 8;
  static constexpr bool kSpreads = false;
  static constexpr bool kPicks = false;
  float lanes[kLanes];

  static void prefetch(const void*) {}  // no compiler has to know a way
  static PortableVector load(const float* from) {
    PortableVector v;
    for (int i = 0; i < kLanes; ++i) v.lanes[i] = from[i];
    return v;
  }
  static void store(const PortableVector& v, float* to) {
    for (int i = 0; i < kLanes; ++i) to[i] = v.lanes[i];
  }
  static PortableVector broadcast(float value) {
    PortableVector v;
    for (int i = 0; i < kLanes; ++i) v.lanes[i] = value;
    return v;
  }
  static PortableVector add(const PortableVector& a, const PortableVector& b) {
    PortableVector v;
    for (int i = 0; i < kLanes; ++i) v.lanes[i] = a.lanes[i] + b.lanes[i];
    return v;
  }
  // b where either is NaN
  static PortableVector maximum(const PortableVector& a, const PortableVector& b) {
    PortableVector v;
    for (int i = 0; i < kLanes; ++i) v.lanes[i] = a.lanes[i] > b.lanes[i] ? a.lanes[i] : b.lanes[i];
    return v;
  }
  static PortableVector multiply_add(const PortableVector& a, const PortableVector& b,
                                     const PortableVector& sum) {
    PortableVector v;
    for (int i = 0; i < kLanes; ++i) v.lanes[i] = a.lanes[i] * b.lanes[i] + sum.lanes[i];
    return v;
  }
  static void transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
    for (int64_t i = 0; i < kLanes; ++i) {
      for (int64_t j = 0; j < kLanes; ++j) to[j * to_stride + i] = from[i * from_stride + j];
    }
  }
};

}  // namespace

const Kernel kPortable = {"portable",
                          fill_panel<PortableVector, kPanelTokens>,
                          fill_panel<PortableVector, kBroadColumns>,
                          multiply_panel<PortableVector>,
                          multiply_broad_panel<PortableVector>,
                          multiply_row<PortableVector>,
                          multiply_columns<PortableVector>,
                          multiply_copied_columns<PortableVector>};

}  // namespace onnxcomp::sparse
