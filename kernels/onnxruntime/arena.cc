#include "onnxruntime/arena.h"

namespace onnxcomp::ort {

Arena::Arena(FunctionTable api, const KernelContext* context) : api_(api) {
  MemoryInfo* info = nullptr;
  check(api, CreateCpuMemoryInfo::call(api, AllocatorType::kArena, MemoryType::kDefault, &info));
  Status* status = GetAllocator::call(api, context, info, &allocator_);
  ReleaseMemoryInfo::call(api, info);
  check(api, status);
}

Arena::~Arena() { ReleaseAllocator::call(api_, allocator_); }

void* Arena::allocate(size_t bytes) {
  void* memory = nullptr;
  check(api_, AllocatorAlloc::call(api_, allocator_, bytes, &memory));
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

void Arena::release(void* memory) noexcept {
  Status* status = AllocatorFree::call(api_, allocator_, memory);
  if (status != nullptr) ReleaseStatus::call(api_, status);
}

}  // namespace onnxcomp::ort
