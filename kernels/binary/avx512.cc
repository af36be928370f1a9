#include <immintrin.h>

#include "binary/avx_numbers.h"
#include "binary/kernels.h"
#include "binary/pack_loops.h"
#include "binary/tile_loops.h"

namespace onnxcomp::binary {
namespace {

struct Avx512Vector : AvxNumbers {
  static constexpr int64_t kBlocks = kTileBlocks;
  static constexpr int64_t kWordsPerSum = int64_t{1} << 24;

  struct Lanes { __m512i words; };
  struct Sum { __m512i words; };
  using Word = Lanes;
  using AvxNumbers::load;

  static Lanes load(const uint64_t* from) { return {_mm512_loadu_si512(from)}; }
  static Word broadcast(uint64_t word) { return {_mm512_set1_epi64(static_cast<int64_t>(word))}; }
  static Sum no_difference() { return {_mm512_setzero_si512()}; }
  static void add_differences(Sum& sum, Lanes lanes, Word word) {
    const __m512i differences = _mm512_xor_si512(lanes.words, word.words);
    sum.words = _mm512_add_epi64(sum.words, _mm512_popcnt_epi64(differences));
  }
  static Ints counts(Sum sum) { return {_mm512_cvtepi64_epi32(sum.words)}; }
};

struct Avx512Packing {
  static constexpr int64_t kFloats = 16;

  struct Floats { __m512 lanes; };
  struct Bits { __m512i lanes; };

  static Floats load(const float* from) { return {_mm512_loadu_ps(from)}; }
  static Floats broadcast(float number) { return {_mm512_set1_ps(number)}; }
  static Bits none() { return {_mm512_setzero_si512()}; }

  template <Comparison kComparison>
  static uint32_t mask(Floats x, Floats thresholds) {
    return _mm512_cmp_ps_mask(x.lanes, thresholds.lanes, predicate<kComparison>());
  }
  template <Comparison kComparison>
  static Bits set(Bits bits, Floats x, Floats threshold, uint32_t bit) {
    const __mmask16 holds = _mm512_cmp_ps_mask(x.lanes, threshold.lanes, predicate<kComparison>());
    const __m512i single = _mm512_set1_epi32(static_cast<int32_t>(bit));
    return {_mm512_mask_or_epi32(bits.lanes, holds, bits.lanes, single)};
  }
  static void store(Bits low, Bits high, uint64_t* to) {
    store_eight(_mm512_castsi512_si256(low.lanes), _mm512_castsi512_si256(high.lanes), to);
    store_eight(_mm512_extracti64x4_epi64(low.lanes, 1), _mm512_extracti64x4_epi64(high.lanes, 1),
                to + kLanes);
  }
  static void store_eight(__m256i low, __m256i high, uint64_t* to) {
    const __m512i upper = _mm512_slli_epi64(_mm512_cvtepu32_epi64(high), 32);
    _mm512_storeu_si512(to, _mm512_or_si512(_mm512_cvtepu32_epi64(low), upper));
  }
};

}  // namespace

const Kernel kAvx512 = {"avx512",
                        conv_floats<Avx512Vector>,
                        conv_bits<Avx512Vector>,
                        gemm_floats<Avx512Vector>,
                        gemm_bits<Avx512Vector>,
                        pack<Avx512Packing>};

}  // namespace onnxcomp::binary
