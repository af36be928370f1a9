#pragma once

#include <cstdint>
#include <utility>

#include "onnxruntime/arguments.h"
#include "sparse_int8/layer.h"
#include "sparse_int8/scratch.h"

// What the operators with sparse int8 weights have in common.

namespace onnxcomp::ort {

enum SparseInt8Input : size_t { kX, kValues, kIndices, kOffsets, kScale, kBias };

// The weights are checked, and used where they lie. Reads y_zero_point where the output is codes.
sparse_int8::Layer read_sparse_int8_layer(FunctionTable api, const KernelInfo* info,
                                          int64_t positions, int64_t groups, bool to_codes);

// Scratch memory for one call. Calls of all sessions take turns with it: as much stays as there
// were calls at a time, and no piece above 16 MiB.
class BorrowedScratch {
 public:
  BorrowedScratch();
  ~BorrowedScratch();
  BorrowedScratch(const BorrowedScratch&) = delete;
  BorrowedScratch& operator=(const BorrowedScratch&) = delete;
  sparse_int8::Scratch& get() { return scratch_; }

 private:
  sparse_int8::Scratch scratch_;
};

template <class Product>
void run_sparse_int8(FunctionTable api, const KernelContext* context, const Product& product) {
  // Fewer multiply-adds take less time than waking a thread.
  constexpr int64_t kSmallestParallelWork = int64_t{1} << 20;
  const bool parallel = product.work() >= kSmallestParallelWork;
  run_tasks(api, context, product.fill_task_count(), parallel,
            [&](int64_t task) { product.fill(task); });
  run_tasks(api, context, product.multiply_task_count(), parallel,
            [&](int64_t task) { product.multiply(task); });
}

}  // namespace onnxcomp::ort
