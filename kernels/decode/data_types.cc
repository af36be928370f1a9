#include "decode/data_types.h"

namespace onnxcomp::decode {

int bits_of(int data_type) noexcept {
  //                               0  1   2  3  4   5   6   7   8  9  10  11  12  13  14  15  16
  static constexpr int kBits[] = {0, 32, 8, 8, 16, 16, 32, 64, 0, 8, 16, 64, 32, 64, 32, 64, 16,
                                  8, 8,  8, 8, 4,  4,  4,  8,  2, 2, 6,  6};
  constexpr int kTypes = static_cast<int>(sizeof kBits / sizeof kBits[0]);
  return data_type < 0 || data_type >= kTypes ? 0 : kBits[data_type];
}

bool widens(int source, int data_type) noexcept {
  if (data_type == kComplex64) data_type = kFloat;
  if (data_type == kComplex128) data_type = kDouble;
  if (source == data_type) return true;
  if (source == kFloat16 || source == kBfloat16) return data_type == kFloat || data_type == kDouble;
  return source == kFloat && data_type == kDouble;
}

}  // namespace onnxcomp::decode
