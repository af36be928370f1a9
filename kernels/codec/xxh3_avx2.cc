#include <immintrin.h>

#include "codec/xxh3_step.h"

namespace onnxcomp::codec {
namespace {

__m256i load(const void* from) { return _mm256_loadu_si256(static_cast<const __m256i*>(from)); }

// Four of the sums: the product of the halves of data ^ secret, and the neighbour's data.
__m256i added(__m256i sums, const uint8_t* data, const uint8_t* secret) {
  const __m256i words = load(data);
  const __m256i mixed = _mm256_xor_si256(words, load(secret));
  const __m256i product = _mm256_mul_epu32(mixed, _mm256_srli_epi64(mixed, 32));
  const __m256i swapped = _mm256_shuffle_epi32(words, _MM_SHUFFLE(1, 0, 3, 2));
  return _mm256_add_epi64(sums, _mm256_add_epi64(product, swapped));
}

}  // namespace

void xxh3_accumulate_avx2(uint64_t* sums, const uint8_t* data, const uint8_t* secret, size_t stripes) noexcept {
  __m256i low = load(sums), high = load(sums + 4);
  for (; stripes > 0; --stripes, data += kXxh3Stripe, secret += 8) {
    low = added(low, data, secret);
    high = added(high, data + 32, secret + 32);
  }
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums), low);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(sums + 4), high);
}

}  // namespace onnxcomp::codec
