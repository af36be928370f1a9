#pragma once

#include "cpu/scratch.h"
#include "onnxruntime/arguments.h"

namespace onnxcomp::ort {

// The memory of the session that a node runs in: what one node gives back the next one gets, warm and
// without a call of the system, and nothing outlives the session.
class Arena final : public Memory {
 public:
  Arena(FunctionTable api, const KernelContext* context);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  void* allocate(size_t bytes) override;
  void release(void* memory) noexcept override;

 private:
  FunctionTable api_;
  Allocator* allocator_ = nullptr;
};

// Multiply-adds: fewer take less time than waking a thread.
inline constexpr int64_t kSmallestParallelProduct = int64_t{1} << 20;

// Runs a product that is cut into tasks, in parallel from so much work on.
template <class Product>
void run_product(FunctionTable api, const KernelContext* context, const Product& product,
                 int64_t smallest_parallel = kSmallestParallelProduct) {
  run_tasks(api, context, product.task_count(), product.work() >= smallest_parallel,
            [&](int64_t task) { product.run(task); });
}

// The same, fill tasks first.
template <class Product>
void run_filled_product(FunctionTable api, const KernelContext* context, const Product& product) {
  constexpr int64_t kFillBatches = 8;  // its tasks are many and take a fraction of a microsecond
  const bool parallel = product.work() >= kSmallestParallelProduct;
  run_tasks(
      api, context, product.fill_task_count(), parallel, [&](int64_t task) { product.fill(task); },
      kFillBatches);
  run_tasks(api, context, product.multiply_task_count(), parallel,
            [&](int64_t task) { product.multiply(task); });
}

}  // namespace onnxcomp::ort
