#include <arm_neon.h>

#include "binary/kernels.h"
#include "binary/pack_loops.h"
#include "binary/tile_loops.h"

namespace onnxcomp::binary {
namespace {

struct NeonVector {
  static constexpr int64_t kBlocks = 1;        // four rows of it fill the registers
  static constexpr int64_t kWordsPerSum = 31;  // a byte counts to 255, a word adds up to 8

  struct Lanes { uint64x2_t words[4]; };
  struct Sum { uint8x16_t bytes[4]; };
  struct Ints { int32x4_t halves[2]; };
  struct Floats { float32x4_t halves[2]; };
  using Word = uint8x16_t;

  static Lanes load(const uint64_t* from) {
    return {{vld1q_u64(from), vld1q_u64(from + 2), vld1q_u64(from + 4), vld1q_u64(from + 6)}};
  }
  static Word broadcast(uint64_t word) { return vreinterpretq_u8_u64(vdupq_n_u64(word)); }
  static Sum no_difference() {
    return {{vdupq_n_u8(0), vdupq_n_u8(0), vdupq_n_u8(0), vdupq_n_u8(0)}};
  }
  static void add_differences(Sum& sum, const Lanes& lanes, Word word) {
    for (int i = 0; i < 4; ++i) {
      const uint8x16_t differences = veorq_u8(vreinterpretq_u8_u64(lanes.words[i]), word);
      sum.bytes[i] = vaddq_u8(sum.bytes[i], vcntq_u8(differences));
    }
  }
  static Ints counts(const Sum& sum) {
    uint32x2_t words[4];
    for (int i = 0; i < 4; ++i)
      words[i] = vmovn_u64(vpaddlq_u32(vpaddlq_u16(vpaddlq_u8(sum.bytes[i]))));
    return {{vreinterpretq_s32_u32(vcombine_u32(words[0], words[1])),
             vreinterpretq_s32_u32(vcombine_u32(words[2], words[3]))}};
  }

  static Ints ints(int32_t number) { return {{vdupq_n_s32(number), vdupq_n_s32(number)}}; }
  static Ints load(const int32_t* from) { return {{vld1q_s32(from), vld1q_s32(from + 4)}}; }
  static void store(const Ints& v, int32_t* to) {
    vst1q_s32(to, v.halves[0]);
    vst1q_s32(to + 4, v.halves[1]);
  }
  static Ints add(const Ints& a, const Ints& b) {
    return {{vaddq_s32(a.halves[0], b.halves[0]), vaddq_s32(a.halves[1], b.halves[1])}};
  }
  static Ints subtract_twice(const Ints& a, const Ints& b) {
    return {{vsubq_s32(a.halves[0], vshlq_n_s32(b.halves[0], 1)),
             vsubq_s32(a.halves[1], vshlq_n_s32(b.halves[1], 1))}};
  }
  static Ints look_up(const int32_t* table, const int32_t* places) {
    int32_t found[kLanes];
    for (int i = 0; i < kLanes; ++i) found[i] = table[places[i]];
    return load(found);
  }
  static uint32x4_t reaches(const Ints& v, const Ints& thresholds, int half) {
    return vcgeq_s32(v.halves[half], thresholds.halves[half]);
  }
  static uint32_t at_least(const Ints& v, const Ints& thresholds) {
    return four_bits(reaches(v, thresholds, 0)) | four_bits(reaches(v, thresholds, 1)) << 4;
  }
  static uint32_t four_bits(uint32x4_t mask) {
    static constexpr uint32_t kPlaces[4] = {1, 2, 4, 8};
    return vaddvq_u32(vandq_u32(mask, vld1q_u32(kPlaces)));
  }
  static void set_where_at_least(const Ints& v, const Ints& thresholds, uint64_t bit,
                                 uint64_t* words) {
    for (int half = 0; half < 2; ++half) {
      const int32x4_t mask = vreinterpretq_s32_u32(reaches(v, thresholds, half));
      set(vmovl_s32(vget_low_s32(mask)), bit, words + 4 * half);
      set(vmovl_s32(vget_high_s32(mask)), bit, words + 4 * half + 2);
    }
  }
  static void set(int64x2_t mask, uint64_t bit, uint64_t* words) {
    const uint64x2_t bits = vandq_u64(vreinterpretq_u64_s64(mask), vdupq_n_u64(bit));
    vst1q_u64(words, vorrq_u64(vld1q_u64(words), bits));
  }

  static Floats floats(float number) { return {{vdupq_n_f32(number), vdupq_n_f32(number)}}; }
  static Floats load(const float* from) { return {{vld1q_f32(from), vld1q_f32(from + 4)}}; }
  static void store(const Floats& v, float* to) {
    vst1q_f32(to, v.halves[0]);
    vst1q_f32(to + 4, v.halves[1]);
  }
  static Floats convert(const Ints& v) {
    return {{vcvtq_f32_s32(v.halves[0]), vcvtq_f32_s32(v.halves[1])}};
  }
  static Floats multiply(const Floats& a, const Floats& b) {
    return {{vmulq_f32(a.halves[0], b.halves[0]), vmulq_f32(a.halves[1], b.halves[1])}};
  }
  static Floats add(const Floats& a, const Floats& b) {
    return {{vaddq_f32(a.halves[0], b.halves[0]), vaddq_f32(a.halves[1], b.halves[1])}};
  }
};

struct NeonPacking {
  static constexpr int64_t kFloats = 4;

  using Floats = float32x4_t;
  using Bits = uint32x4_t;

  static Floats load(const float* from) { return vld1q_f32(from); }
  static Floats broadcast(float number) { return vdupq_n_f32(number); }
  static Bits none() { return vdupq_n_u32(0); }

  template <Comparison kComparison>
  static uint32x4_t compare(Floats x, Floats thresholds) {
    switch (kComparison) {
      case Comparison::kGreater: return vcgtq_f32(x, thresholds);
      case Comparison::kGreaterOrEqual: return vcgeq_f32(x, thresholds);
      case Comparison::kLess: return vcltq_f32(x, thresholds);
      default: return vcleq_f32(x, thresholds);
    }
  }
  template <Comparison kComparison>
  static uint32_t mask(Floats x, Floats thresholds) {
    return NeonVector::four_bits(compare<kComparison>(x, thresholds));
  }
  template <Comparison kComparison>
  static Bits set(Bits bits, Floats x, Floats threshold, uint32_t bit) {
    return vorrq_u32(bits, vandq_u32(compare<kComparison>(x, threshold), vdupq_n_u32(bit)));
  }
  static void store(Bits low, Bits high, uint64_t* to) {
    const uint32x4_t first = vzip1q_u32(low, high), second = vzip2q_u32(low, high);
    vst1q_u64(to, vreinterpretq_u64_u32(first));
    vst1q_u64(to + 2, vreinterpretq_u64_u32(second));
  }
};

}  // namespace

const Kernel kNeon = {"neon",
                      conv_floats<NeonVector>,
                      conv_bits<NeonVector>,
                      gemm_floats<NeonVector>,
                      gemm_bits<NeonVector>,
                      pack<NeonPacking>};

}  // namespace onnxcomp::binary
