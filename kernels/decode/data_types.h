#pragma once

// TensorProto.DataType, as far as decoding needs it (docs/container.md).

namespace onnxcomp::decode {

enum DataType { kFloat = 1, kFloat16 = 10, kDouble = 11, kComplex64 = 14, kComplex128 = 15, kBfloat16 = 16 };

// Bits of a number; 0 where the type is unknown.
int bits_of(int data_type) noexcept;

// Whether elements are two numbers.
inline bool is_complex(int data_type) noexcept { return data_type == kComplex64 || data_type == kComplex128; }

// Whether numbers are floats that grids are for.
inline bool is_float(int data_type) noexcept {
  return data_type == kFloat || data_type == kFloat16 || data_type == kDouble || data_type == kBfloat16;
}

// Whether every number of type `source` is one of the numbers of a tensor.
bool widens(int source, int data_type) noexcept;

}  // namespace onnxcomp::decode
