#pragma once

// Inside this library a failure is an exception; at its edge every callback turns it into a Status.

#include <exception>
#include <stdexcept>
#include <string>

#include "onnxruntime/abi.h"

namespace onnxcomp::ort {

// A model or an input that the operator cannot run; the text is what the user reads.
class InvalidArgument : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws what onnxruntime reported, if anything, and releases the report.
inline void check(FunctionTable api, Status* status) {
  if (status == nullptr) return;
  const std::string message = GetErrorMessage::call(api, status);
  ReleaseStatus::call(api, status);
  throw std::runtime_error(message);
}

// Runs `body`; nothing it throws goes any further.
template <class Body>
Status* returning_status(FunctionTable api, const char* where, Body&& body) noexcept {
  try {
    try {
      body();
      return nullptr;
    } catch (const InvalidArgument& error) {
      const std::string message = std::string(where) + ": " + error.what();
      return CreateStatus::call(api, ErrorCode::kInvalidArgument, message.c_str());
    } catch (const std::bad_alloc&) {
      return CreateStatus::call(api, ErrorCode::kFail, "onnxcomp: out of memory");
    } catch (const std::exception& error) {
      const std::string message = std::string(where) + ": " + error.what();
      return CreateStatus::call(api, ErrorCode::kFail, message.c_str());
    }
  } catch (...) {
    return CreateStatus::call(api, ErrorCode::kFail, "onnxcomp: failed without a message");
  }
}

}  // namespace onnxcomp::ort
