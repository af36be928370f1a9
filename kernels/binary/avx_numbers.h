#pragma once

// Eight integers or floats of AVX2: what the files of AVX2 and AVX-512 share.

#include <immintrin.h>

#include <cstdint>

#include "binary/kernels.h"

namespace onnxcomp::binary {
namespace {

struct AvxNumbers {
  struct Ints { __m256i lanes; };
  struct Floats { __m256 lanes; };

  static Ints ints(int32_t number) { return {_mm256_set1_epi32(number)}; }
  static Ints load(const int32_t* from) {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from))};
  }
  static void store(Ints v, int32_t* to) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), v.lanes);
  }
  static Ints add(Ints a, Ints b) { return {_mm256_add_epi32(a.lanes, b.lanes)}; }
  static Ints subtract_twice(Ints a, Ints b) {
    return {_mm256_sub_epi32(a.lanes, _mm256_add_epi32(b.lanes, b.lanes))};
  }
  // table[kLookupClasses]
  static Ints look_up(const int32_t* table, const int32_t* places) {
    const __m256i at = load(places).lanes;
    const __m256i low = _mm256_permutevar8x32_epi32(load(table).lanes, at);
    const __m256i high = _mm256_permutevar8x32_epi32(load(table + kLanes).lanes, at);
    const __m256i in_high = _mm256_cmpgt_epi32(at, _mm256_set1_epi32(kLanes - 1));
    return {_mm256_blendv_epi8(low, high, in_high)};
  }
  static __m256i below(Ints v, Ints thresholds) {
    return _mm256_cmpgt_epi32(thresholds.lanes, v.lanes);
  }
  static uint32_t at_least(Ints v, Ints thresholds) {
    return 0xffu ^ static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(below(v, thresholds))));
  }
  static void set_where_at_least(Ints v, Ints thresholds, uint64_t bit, uint64_t* words) {
    const __m256i no = below(v, thresholds);
    const __m256i set = _mm256_set1_epi64x(static_cast<int64_t>(bit));
    auto* to = reinterpret_cast<__m256i*>(words);
    const __m256i low = _mm256_andnot_si256(_mm256_cvtepi32_epi64(_mm256_castsi256_si128(no)), set);
    const __m256i high = _mm256_andnot_si256(_mm256_cvtepi32_epi64(_mm256_extracti128_si256(no, 1)), set);
    _mm256_storeu_si256(to, _mm256_or_si256(_mm256_loadu_si256(to), low));
    _mm256_storeu_si256(to + 1, _mm256_or_si256(_mm256_loadu_si256(to + 1), high));
  }

  static Floats floats(float number) { return {_mm256_set1_ps(number)}; }
  static Floats load(const float* from) { return {_mm256_loadu_ps(from)}; }
  static void store(Floats v, float* to) { _mm256_storeu_ps(to, v.lanes); }
  static Floats convert(Ints v) { return {_mm256_cvtepi32_ps(v.lanes)}; }
  static Floats multiply(Floats a, Floats b) { return {_mm256_mul_ps(a.lanes, b.lanes)}; }
  static Floats add(Floats a, Floats b) { return {_mm256_add_ps(a.lanes, b.lanes)}; }
};

template <Comparison kComparison>
constexpr int predicate() {  // ordered: NaN compares as false
  switch (kComparison) {
    case Comparison::kGreater: return _CMP_GT_OQ;
    case Comparison::kGreaterOrEqual: return _CMP_GE_OQ;
    case Comparison::kLess: return _CMP_LT_OQ;
    default: return _CMP_LE_OQ;
  }
}

}  // namespace
}  // namespace onnxcomp::binary
