#include "sparse_int8/interleaved_rows.h"
#include "sparse_int8/kernels.h"

namespace onnxcomp::sparse_int8 {
namespace {

// Adding 1.5 x 2^23 leaves no bits for a fraction: the sum is rounded to even.
constexpr float kRounder = 12582912.0f;

void scale_rows(const uint32_t* sums, float scale, int32_t zero_point, uint8_t* codes) {
  const float low = static_cast<float>(-zero_point);
  const float high = static_cast<float>(255 - zero_point);
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    float value = static_cast<float>(static_cast<int32_t>(sums[lane])) * scale;
    value = value < low ? low : value;
    value = value > high ? high : value;
    const float rounded = (value + kRounder) - kRounder;
    codes[lane] = static_cast<uint8_t>(static_cast<int32_t>(rounded) + zero_point);
  }
}

void scale_rows(const uint32_t* sums, float scale, int32_t, float* results) {
  for (int64_t lane = 0; lane < kLanes; ++lane)
    results[lane] = static_cast<float>(static_cast<int32_t>(sums[lane])) * scale;
}

// One block for one vector of columns.
template <int kRows, class Result>
void multiply_block(const PackedWeights& weights, const Scaling& scaling, const Columns& columns,
                    int64_t block, int64_t vector, Result* results, int64_t stride) {
  uint32_t sums[kRows][kLanes];
  for (int row = 0; row < kRows; ++row) {
    for (int64_t lane = 0; lane < kLanes; ++lane)
      sums[row][lane] = static_cast<uint32_t>(scaling.bias[block * kRows + row]);
  }
  for (int64_t entry = weights.offsets[block]; entry < weights.offsets[block + 1]; ++entry) {
    const uint8_t* x = columns.x + columns.places[weights.indices[entry]] + vector * kLanes * kQuad;
    for (int row = 0; row < kRows; ++row) {
      const int8_t* value = weights.values + (entry * kRows + row) * kQuad;
      for (int64_t lane = 0; lane < kLanes; ++lane) {
        const uint8_t* quad = x + lane * kQuad;
        const int32_t sum =
            value[0] * quad[0] + value[1] * quad[1] + value[2] * quad[2] + value[3] * quad[3];
        sums[row][lane] += static_cast<uint32_t>(sum);
      }
    }
  }
  for (int row = 0; row < kRows; ++row)
    scale_rows(sums[row], scaling.scale[block * kRows + row], scaling.zero_point,
               results + row * stride + vector * kLanes);
}

template <class Result>
void multiply(const PackedWeights& weights, const Scaling& scaling, const Columns& columns,
              BlockRange blocks, Result* results, int64_t stride) {
  for (int64_t block = blocks.first; block < blocks.last; ++block) {
    Result* rows = results + (block - blocks.first) * weights.block_rows * stride;
    for (int64_t vector = 0; vector < columns.vectors; ++vector) {
      if (weights.block_rows == 4) {
        multiply_block<4>(weights, scaling, columns, block, vector, rows, stride);
      } else {
        multiply_block<1>(weights, scaling, columns, block, vector, rows, stride);
      }
    }
  }
}

template <int kColumns, int kBytes>
void transpose(const uint8_t* from, int64_t from_stride, uint8_t* to, int64_t to_stride) {
  for (int64_t row = 0; row < 16; ++row) {
    for (int64_t column = 0; column < kColumns; ++column) {
      for (int64_t byte = 0; byte < kBytes; ++byte)
        to[column * to_stride + row * kBytes + byte] =
            from[row * from_stride + column * kBytes + byte];
    }
  }
}

void interleave_row(const Planes& planes, int64_t first, int64_t count, uint8_t* to) {
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t channel = 0; channel < kQuad; ++channel)
      to[i * kQuad + channel] = planes.channels[channel][first + i];
  }
}

}  // namespace

const Kernel kPortable = {"portable",       multiply<uint8_t>, multiply<float>,
                          transpose<64, 1>, transpose<16, 4>,  interleave_rows<interleave_row>};

}  // namespace onnxcomp::sparse_int8
