#pragma once

#include <cstdint>

#include "binary/kernels.h"

namespace onnxcomp::binary {

// A binary Gemm cut into independent tasks, run in any order and on any threads; the result does not
// depend on them. x is [rows, row_words], the output [rows, out_features or words of them].
class Gemm {
 public:
  Gemm(const Kernel& kernel, const GemmWeights& weights, const uint64_t* x, int64_t rows);

  int64_t task_count() const { return strips_ * parts_; }
  void run(int64_t task, const FloatOutput& out) const noexcept;
  void run(int64_t task, const BitOutput& out) const noexcept;

  // Words compared: whether threads are worth waking.
  int64_t work() const { return rows_ * weights_.out_features * weights_.row_words(); }

 private:
  Range rows_of(int64_t task) const;
  Range outputs_of(int64_t task) const;

  const Kernel& kernel_;
  const GemmWeights& weights_;
  const uint64_t* x_;
  int64_t rows_;
  int64_t strips_;  // of rows
  int64_t parts_;   // of outputs, at multiples of 64
};

}  // namespace onnxcomp::binary
