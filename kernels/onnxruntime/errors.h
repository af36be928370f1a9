#pragma once

// Inside this library a failure is an exception; at its edge every callback turns it into a Status.

#include <cstdio>
#include <exception>
#include <new>
#include <stdexcept>
#include <string>

#include "onnxruntime/abi.h"

namespace onnxcomp::ort {

// A model or an input that the operator cannot run; the text is what the user reads.
class InvalidArgument : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws a defect, unless it is an empty string.
inline void refuse(const std::string& defect) {
  if (!defect.empty()) throw InvalidArgument(defect);
}

// Throws what onnxruntime reported, if anything, and releases the report.
inline void check(FunctionTable api, Status* status) {
  if (status == nullptr) return;
  struct Report {
    FunctionTable api;
    Status* status;
    ~Report() { ReleaseStatus::call(api, status); }
  } const report{api, status};
  throw std::runtime_error(GetErrorMessage::call(api, status));
}

// The report of a failure; needs no memory of this library's, which may be what is missing.
inline Status* failure(FunctionTable api, ErrorCode code, const char* where,
                       const std::string& node, const char* what) {
  char message[2048];  // longer ones are cut
  std::snprintf(message, sizeof message, "%s%s: %s", where, node.c_str(), what);
  return CreateStatus::call(api, code, message);
}

// Runs `body`; nothing it throws goes any further. The report begins with `where` and `node`, which
// is read after the body, so that it may be found there.
template <class Body>
Status* returning_status(FunctionTable api, const char* where, const std::string& node,
                         Body&& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (const InvalidArgument& error) {
    return failure(api, ErrorCode::kInvalidArgument, where, node, error.what());
  } catch (const std::bad_alloc&) {
    return failure(api, ErrorCode::kFail, where, node, "out of memory");
  } catch (const std::exception& error) {
    return failure(api, ErrorCode::kFail, where, node, error.what());
  } catch (...) {
    return failure(api, ErrorCode::kFail, where, node, "failed without a message");
  }
}

}  // namespace onnxcomp::ort
