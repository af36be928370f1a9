#include <immintrin.h>

#include "binary/avx_numbers.h"
#include "binary/kernels.h"
#include "binary/pack_loops.h"
#include "binary/tile_loops.h"

namespace onnxcomp::binary {
namespace {

struct Avx2Vector : AvxNumbers {
  static constexpr int64_t kBlocks = 1;  // four rows of it fill the registers
  static constexpr int64_t kWordsPerSum = 31;  // a byte counts to 255, a word adds up to 8

  struct Lanes { __m256i words[2]; };
  struct Sum { __m256i bytes[2]; };
  struct Word { __m256i words; };
  using AvxNumbers::load;

  static Lanes load(const uint64_t* from) {
    const auto* vectors = reinterpret_cast<const __m256i*>(from);
    return {{_mm256_loadu_si256(vectors), _mm256_loadu_si256(vectors + 1)}};
  }
  static Word broadcast(uint64_t word) { return {_mm256_set1_epi64x(static_cast<int64_t>(word))}; }
  static Sum no_difference() { return {{_mm256_setzero_si256(), _mm256_setzero_si256()}}; }
  static void add_differences(Sum& sum, const Lanes& lanes, Word word) {
    for (int half = 0; half < 2; ++half) {
      const __m256i differences = _mm256_xor_si256(lanes.words[half], word.words);
      sum.bytes[half] = _mm256_add_epi8(sum.bytes[half], count_ones(differences));
    }
  }

  // Mula, Kurz and Lemire, Faster Population Counts Using AVX2 Instructions, section 3: a shuffle
  // looks up how many of a nibble's bits are set.
  static __m256i count_ones(__m256i bits) {
    const __m256i ones_of_nibble =
        _mm256_setr_epi8(0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4,
                         0, 1, 1, 2, 1, 2, 2, 3, 1, 2, 2, 3, 2, 3, 3, 4);
    const __m256i nibble = _mm256_set1_epi8(0x0f);
    const __m256i low = _mm256_and_si256(bits, nibble);
    const __m256i high = _mm256_and_si256(_mm256_srli_epi16(bits, 4), nibble);
    return _mm256_add_epi8(_mm256_shuffle_epi8(ones_of_nibble, low),
                           _mm256_shuffle_epi8(ones_of_nibble, high));
  }
  static Ints counts(const Sum& sum) {
    const __m256i zero = _mm256_setzero_si256();
    const __m256 low = _mm256_castsi256_ps(_mm256_sad_epu8(sum.bytes[0], zero));
    const __m256 high = _mm256_castsi256_ps(_mm256_sad_epu8(sum.bytes[1], zero));
    const __m256i mixed = _mm256_castps_si256(_mm256_shuffle_ps(low, high, _MM_SHUFFLE(2, 0, 2, 0)));
    return {_mm256_permute4x64_epi64(mixed, _MM_SHUFFLE(3, 1, 2, 0))};
  }
};

struct Avx2Packing {
  static constexpr int64_t kFloats = kLanes;

  struct Floats { __m256 lanes; };
  struct Bits { __m256i lanes; };

  static Floats load(const float* from) { return {_mm256_loadu_ps(from)}; }
  static Floats broadcast(float number) { return {_mm256_set1_ps(number)}; }
  static Bits none() { return {_mm256_setzero_si256()}; }

  template <Comparison kComparison>
  static __m256 compare(Floats x, Floats thresholds) {
    return _mm256_cmp_ps(x.lanes, thresholds.lanes, predicate<kComparison>());
  }
  template <Comparison kComparison>
  static uint32_t mask(Floats x, Floats thresholds) {
    return static_cast<uint32_t>(_mm256_movemask_ps(compare<kComparison>(x, thresholds)));
  }
  template <Comparison kComparison>
  static Bits set(Bits bits, Floats x, Floats threshold, uint32_t bit) {
    const __m256i holds = _mm256_castps_si256(compare<kComparison>(x, threshold));
    const __m256i single = _mm256_set1_epi32(static_cast<int32_t>(bit));
    return {_mm256_or_si256(bits.lanes, _mm256_and_si256(holds, single))};
  }
  static void store(Bits low, Bits high, uint64_t* to) {
    const __m256i even = _mm256_unpacklo_epi32(low.lanes, high.lanes);  // words 0 1 4 5
    const __m256i odd = _mm256_unpackhi_epi32(low.lanes, high.lanes);   // words 2 3 6 7
    auto* vectors = reinterpret_cast<__m256i*>(to);
    _mm256_storeu_si256(vectors, _mm256_permute2x128_si256(even, odd, 0x20));
    _mm256_storeu_si256(vectors + 1, _mm256_permute2x128_si256(even, odd, 0x31));
  }
};

}  // namespace

const Kernel kAvx2 = {"avx2",
                      conv_floats<Avx2Vector>,
                      conv_bits<Avx2Vector>,
                      gemm_floats<Avx2Vector>,
                      gemm_bits<Avx2Vector>,
                      pack<Avx2Packing>};

}  // namespace onnxcomp::binary
