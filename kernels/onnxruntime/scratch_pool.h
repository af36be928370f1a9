#pragma once

#include <utility>

#include "cpu/scratch.h"
#include "onnxruntime/arguments.h"

namespace onnxcomp::ort {

// Scratch memory for one call. Calls of all sessions take turns with it: as much stays as there
// were calls at a time, and no piece above 16 MiB.
class BorrowedScratch {
 public:
  BorrowedScratch();
  ~BorrowedScratch();
  BorrowedScratch(const BorrowedScratch&) = delete;
  BorrowedScratch& operator=(const BorrowedScratch&) = delete;
  Scratch& get() { return scratch_; }

 private:
  Scratch scratch_;
};

// Runs a product that is cut into tasks, fill tasks first.
template <class Product>
void run_product(FunctionTable api, const KernelContext* context, const Product& product) {
  // Fewer multiply-adds take less time than waking a thread.
  constexpr int64_t kSmallestParallelWork = int64_t{1} << 20;
  const bool parallel = product.work() >= kSmallestParallelWork;
  run_tasks(api, context, product.fill_task_count(), parallel,
            [&](int64_t task) { product.fill(task); });
  run_tasks(api, context, product.multiply_task_count(), parallel,
            [&](int64_t task) { product.multiply(task); });
}

}  // namespace onnxcomp::ort
