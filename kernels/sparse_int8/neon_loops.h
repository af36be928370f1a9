#pragma once

// The algorithm, written once over a way D of multiplying quads and included by one source file per
// extension of the instruction set. Everything is in an unnamed namespace, and no template comes
// from std: of one with external linkage the linker keeps one copy, and it could be the one compiled
// for instructions this processor does not have.
//
// D has Quads (four columns of x), quads(x), bias(scaling), which goes with them, and
// multiply_add<row>(sum, quads, values), which adds the products with the quad of that row.

#include <arm_neon.h>

#include <cstdint>

#include "sparse_int8/interleaved_rows.h"
#include "sparse_int8/kernels.h"
#include "sparse_int8/unrolled.h"

namespace onnxcomp::sparse_int8 {
namespace {

constexpr int kColumns = 4;  // of one register
constexpr int kRegisters = static_cast<int>(kLanes) / kColumns;

// Of one row and one vector of columns.
struct Sums {
  int32x4_t columns[kRegisters];
};

// What processors multiply that have no products of u8 x s8: x - 128.
struct CentredQuads {
  using Quads = int8x16_t;

  static Quads quads(uint8x16_t x) { return vreinterpretq_s8_u8(veorq_u8(x, vdupq_n_u8(0x80))); }
  static const int32_t* bias(const Scaling& scaling) { return scaling.centred_bias; }
};

// The quads of four rows, or that of one.
template <int kRows>
int8x16_t load_values(const int8_t* values) {
  if constexpr (kRows == 4) return vld1q_s8(values);
  const auto* bytes = reinterpret_cast<const uint8_t*>(values);  // at any address; one load
  const uint32_t quad = bytes[0] | static_cast<uint32_t>(bytes[1]) << 8 |
                        static_cast<uint32_t>(bytes[2]) << 16 | static_cast<uint32_t>(bytes[3]) << 24;
  return vreinterpretq_s8_u32(vdupq_n_u32(quad));
}

float32x4_t scaled(int32x4_t sums, float scale) {
  return vmulq_f32(vcvtq_f32_s32(sums), vdupq_n_f32(scale));
}

// Every step saturates, which is what a clamp at the end asks for.
int16x4_t rounded(int32x4_t sums, float scale) {
  return vqmovn_s32(vcvtnq_s32_f32(scaled(sums, scale)));
}

void write_row(const Sums& sums, float scale, int32_t zero_point, uint8_t* codes) {
  const int16x8_t zero = vdupq_n_s16(static_cast<int16_t>(zero_point));
  uint8x8_t halves[2];
  for (int i = 0; i < 2; ++i) {
    const int16x8_t words = vcombine_s16(rounded(sums.columns[2 * i], scale),
                                         rounded(sums.columns[2 * i + 1], scale));
    halves[i] = vqmovun_s16(vqaddq_s16(words, zero));
  }
  vst1q_u8(codes, vcombine_u8(halves[0], halves[1]));
}

void write_row(const Sums& sums, float scale, int32_t, float* results) {
  for (int i = 0; i < kRegisters; ++i)
    vst1q_f32(results + i * kColumns, scaled(sums.columns[i], scale));
}

// What four columns of an entry add to the sums of its rows; lanes are named by constants.
template <class D, int kRows, int kVectors>
void add_columns(typename D::Quads quads, int8x16_t values, int v, int i,
                 Sums (&sums)[kRows][kVectors]) {
  const auto sum = [&](int row) -> int32x4_t& { return sums[row][v].columns[i]; };
  sum(0) = D::template multiply_add<0>(sum(0), quads, values);
  if constexpr (kRows == 4) {
    sum(1) = D::template multiply_add<1>(sum(1), quads, values);
    sum(2) = D::template multiply_add<2>(sum(2), quads, values);
    sum(3) = D::template multiply_add<3>(sum(3), quads, values);
  }
}

// One block for kVectors vectors of columns.
template <class D, int kRows, int kVectors, class Result>
void multiply_block(const PackedWeights& weights, const Scaling& scaling, const Columns& columns,
                    int64_t block, int64_t vector, Result* results, int64_t stride) {
  Sums sums[kRows][kVectors];
  ONNXCOMP_UNROLLED
  for (int row = 0; row < kRows; ++row) {
    const int32x4_t bias = vdupq_n_s32(D::bias(scaling)[block * kRows + row]);
    ONNXCOMP_UNROLLED
    for (int v = 0; v < kVectors; ++v) {
      ONNXCOMP_UNROLLED
      for (int i = 0; i < kRegisters; ++i) sums[row][v].columns[i] = bias;
    }
  }
  const uint8_t* first = columns.x + vector * kLanes * kQuad;
  for (int64_t entry = weights.offsets[block]; entry < weights.offsets[block + 1]; ++entry) {
    const int8x16_t values = load_values<kRows>(weights.values + entry * kRows * kQuad);
    const uint8_t* x = first + columns.places[weights.indices[entry]];
    ONNXCOMP_UNROLLED
    for (int v = 0; v < kVectors; ++v) {
      ONNXCOMP_UNROLLED
      for (int i = 0; i < kRegisters; ++i) {
        const uint8_t* columns_x = x + (v * kLanes + i * kColumns) * kQuad;
        add_columns<D>(D::quads(vld1q_u8(columns_x)), values, v, i, sums);
      }
    }
  }
  ONNXCOMP_UNROLLED
  for (int row = 0; row < kRows; ++row) {
    ONNXCOMP_UNROLLED
    for (int v = 0; v < kVectors; ++v)
      write_row(sums[row][v], scaling.scale[block * kRows + row], scaling.zero_point,
                results + row * stride + (vector + v) * kLanes);
  }
}

// Eight sums at once hide the latency of adding to them: four rows, or two vectors of one.
template <class D, class Result>
void multiply(const PackedWeights& weights, const Scaling& scaling, const Columns& columns,
              BlockRange blocks, Result* results, int64_t stride) {
  for (int64_t block = blocks.first; block < blocks.last; ++block) {
    Result* rows = results + (block - blocks.first) * weights.block_rows * stride;
    int64_t vector = 0;
    if (weights.block_rows == 4) {
      for (; vector < columns.vectors; ++vector)
        multiply_block<D, 4, 1>(weights, scaling, columns, block, vector, rows, stride);
      continue;
    }
    for (; vector + 2 <= columns.vectors; vector += 2)
      multiply_block<D, 1, 2>(weights, scaling, columns, block, vector, rows, stride);
    for (; vector < columns.vectors; ++vector)
      multiply_block<D, 1, 1>(weights, scaling, columns, block, vector, rows, stride);
  }
}

void transpose_bytes(const uint8_t* from, int64_t from_stride, uint8_t* to, int64_t to_stride) {
  for (int64_t column = 0; column < kTransposedColumns; column += 16) {
    // Four rounds, each of which interleaves row i with row i + 8: index bits rotate by one.
    uint8x16_t rows[16], next[16];
    for (int i = 0; i < 16; ++i) rows[i] = vld1q_u8(from + i * from_stride + column);
    for (int round = 0; round < 4; ++round) {
      for (int i = 0; i < 8; ++i) {
        next[2 * i] = vzip1q_u8(rows[i], rows[i + 8]);
        next[2 * i + 1] = vzip2q_u8(rows[i], rows[i + 8]);
      }
      for (int i = 0; i < 16; ++i) rows[i] = next[i];
    }
    for (int i = 0; i < 16; ++i) vst1q_u8(to + (column + i) * to_stride, rows[i]);
  }
}

uint32x4_t load_words(const uint8_t* from) { return vreinterpretq_u32_u8(vld1q_u8(from)); }

// Squares of four rows of four words; the same rounds, of which two are enough.
void transpose_words(const uint8_t* from, int64_t from_stride, uint8_t* to, int64_t to_stride) {
  for (int64_t i = 0; i < 16; i += 4) {
    for (int64_t j = 0; j < 16; j += 4) {
      uint32x4_t rows[4];
      for (int r = 0; r < 4; ++r) rows[r] = load_words(from + (i + r) * from_stride + 4 * j);
      const uint32x4_t even[2] = {vzip1q_u32(rows[0], rows[2]), vzip2q_u32(rows[0], rows[2])};
      const uint32x4_t odd[2] = {vzip1q_u32(rows[1], rows[3]), vzip2q_u32(rows[1], rows[3])};
      for (int half = 0; half < 2; ++half) {
        uint8_t* first = to + (j + 2 * half) * to_stride + 4 * i;
        vst1q_u8(first, vreinterpretq_u8_u32(vzip1q_u32(even[half], odd[half])));
        vst1q_u8(first + to_stride, vreinterpretq_u8_u32(vzip2q_u32(even[half], odd[half])));
      }
    }
  }
}

void interleave_vector(const Planes& planes, int64_t first, uint8_t* to) {
  uint8x16x4_t rows;
  for (int channel = 0; channel < kQuad; ++channel)
    rows.val[channel] = vld1q_u8(planes.channels[channel] + first);
  vst4q_u8(to, rows);
}

void interleave_row(const Planes& planes, int64_t first, int64_t count, uint8_t* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) interleave_vector(planes, first + i, to + i * kQuad);
  if (i < count && count >= kLanes) {  // the last vector overlaps
    const int64_t last = count - kLanes;
    return interleave_vector(planes, first + last, to + last * kQuad);
  }
  for (; i < count; ++i) {
    for (int64_t channel = 0; channel < kQuad; ++channel)
      to[i * kQuad + channel] = planes.channels[channel][first + i];
  }
}

template <class D>
constexpr Kernel kernel_of(const char* isa) {
  return {isa,           multiply<D, uint8_t>, multiply<D, float>, transpose_bytes,
          transpose_words, interleave_rows<interleave_row>};
}

}  // namespace
}  // namespace onnxcomp::sparse_int8
