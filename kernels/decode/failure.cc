#include "decode/failure.h"

#include <cstdarg>
#include <cstdio>

namespace onnxcomp::decode {

onnxcomp_status fail(onnxcomp_error* error, onnxcomp_status status, const char* format, ...) noexcept {
  if (error == nullptr) return status;
  error->status = status;
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(error->message, sizeof error->message, format, arguments);
  va_end(arguments);
  return status;
}

onnxcomp_status fail_memory(onnxcomp_error* error, const Budget& budget, const char* what) noexcept {
  if (budget.refused) {
    return fail(error, ONNXCOMP_OVER_LIMIT, "%s needs more memory than max_bytes = %llu allows", what,
                static_cast<unsigned long long>(budget.limit));
  }
  return fail(error, ONNXCOMP_OUT_OF_MEMORY, "there is no memory for %s", what);
}

}  // namespace onnxcomp::decode
