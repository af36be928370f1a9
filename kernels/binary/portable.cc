#include "binary/kernels.h"
#include "binary/pack_loops.h"
#include "binary/tile_loops.h"

namespace onnxcomp::binary {
namespace {

// Arrays that any compiler turns into its target's own vectors.
struct PortableVector {
  static constexpr int64_t kBlocks = 1;
  static constexpr int64_t kWordsPerSum = int64_t{1} << 24;

  struct Lanes { uint64_t words[kLanes]; };
  struct Ints { int32_t lanes[kLanes]; };
  struct Floats { float lanes[kLanes]; };
  using Sum = Ints;
  using Word = uint64_t;

  static Lanes load(const uint64_t* from) {
    Lanes v;
    for (int i = 0; i < kLanes; ++i) v.words[i] = from[i];
    return v;
  }
  static Word broadcast(uint64_t word) { return word; }
  static Sum no_difference() { return ints(0); }
  static void add_differences(Sum& sum, const Lanes& lanes, Word word) {
    for (int i = 0; i < kLanes; ++i) sum.lanes[i] += count_ones(lanes.words[i] ^ word);
  }
  static Ints counts(const Sum& sum) { return sum; }

  static Ints ints(int32_t number) {
    Ints v;
    for (int i = 0; i < kLanes; ++i) v.lanes[i] = number;
    return v;
  }
  static Ints load(const int32_t* from) {
    Ints v;
    for (int i = 0; i < kLanes; ++i) v.lanes[i] = from[i];
    return v;
  }
  static void store(const Ints& v, int32_t* to) {
    for (int i = 0; i < kLanes; ++i) to[i] = v.lanes[i];
  }
  static Ints add(const Ints& a, const Ints& b) {
    Ints v;
    for (int i = 0; i < kLanes; ++i) v.lanes[i] = a.lanes[i] + b.lanes[i];
    return v;
  }
  static Ints subtract_twice(const Ints& a, const Ints& b) {
    Ints v;
    for (int i = 0; i < kLanes; ++i) v.lanes[i] = a.lanes[i] - 2 * b.lanes[i];
    return v;
  }
  static Ints look_up(const int32_t* table, const int32_t* places) {
    Ints v;
    for (int i = 0; i < kLanes; ++i) v.lanes[i] = table[places[i]];
    return v;
  }
  static uint32_t at_least(const Ints& v, const Ints& thresholds) {
    uint32_t bits = 0;
    for (int i = 0; i < kLanes; ++i) bits |= uint32_t{v.lanes[i] >= thresholds.lanes[i]} << i;
    return bits;
  }
  static void set_where_at_least(const Ints& v, const Ints& thresholds, uint64_t bit,
                                 uint64_t* words) {
    for (int i = 0; i < kLanes; ++i) {
      if (v.lanes[i] >= thresholds.lanes[i]) words[i] |= bit;
    }
  }

  static Floats floats(float number) {
    Floats v;
    for (int i = 0; i < kLanes; ++i) v.lanes[i] = number;
    return v;
  }
  static Floats load(const float* from) {
    Floats v;
    for (int i = 0; i < kLanes; ++i) v.lanes[i] = from[i];
    return v;
  }
  static void store(const Floats& v, float* to) {
    for (int i = 0; i < kLanes; ++i) to[i] = v.lanes[i];
  }
  static Floats convert(const Ints& integers) {
    Floats v;
    for (int i = 0; i < kLanes; ++i) v.lanes[i] = static_cast<float>(integers.lanes[i]);
    return v;
  }
  static Floats multiply(const Floats& a, const Floats& b) {
    Floats v;
    for (int i = 0; i < kLanes; ++i) v.lanes[i] = a.lanes[i] * b.lanes[i];
    return v;
  }
  static Floats add(const Floats& a, const Floats& b) {
    Floats v;
    for (int i = 0; i < kLanes; ++i) v.lanes[i] = a.lanes[i] + b.lanes[i];
    return v;
  }
};

struct PortablePacking {
  static constexpr int64_t kFloats = kLanes;

  using Floats = PortableVector::Floats;
  struct Bits { uint32_t lanes[kLanes]; };

  static Floats load(const float* from) { return PortableVector::load(from); }
  static Floats broadcast(float number) { return PortableVector::floats(number); }
  static Bits none() { return {}; }

  template <Comparison kComparison>
  static uint32_t mask(const Floats& x, const Floats& thresholds) {
    uint32_t bits = 0;
    for (int i = 0; i < kLanes; ++i)
      bits |= uint32_t{compares<kComparison>(x.lanes[i], thresholds.lanes[i])} << i;
    return bits;
  }
  template <Comparison kComparison>
  static Bits set(const Bits& bits, const Floats& x, const Floats& threshold, uint32_t bit) {
    Bits v;
    for (int i = 0; i < kLanes; ++i) {
      const bool holds = compares<kComparison>(x.lanes[i], threshold.lanes[i]);
      v.lanes[i] = bits.lanes[i] | (holds ? bit : 0);
    }
    return v;
  }
  static void store(const Bits& low, const Bits& high, uint64_t* to) {
    for (int i = 0; i < kLanes; ++i) to[i] = uint64_t{high.lanes[i]} << 32 | low.lanes[i];
  }
};

}  // namespace

const Kernel kPortable = {"portable",
                          conv_floats<PortableVector>,
                          conv_bits<PortableVector>,
                          gemm_floats<PortableVector>,
                          gemm_bits<PortableVector>,
                          pack<PortablePacking>};

}  // namespace onnxcomp::binary
