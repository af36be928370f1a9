#pragma once

#include <nanobind/nanobind.h>

#include "codec/geometry.h"

namespace onnxcomp {

// The memory of any contiguous bytes-like object.
class View {
 public:
  explicit View(nanobind::handle object) {
    if (PyObject_GetBuffer(object.ptr(), &buffer_, PyBUF_SIMPLE) != 0) throw nanobind::python_error();
  }
  ~View() { PyBuffer_Release(&buffer_); }
  View(const View&) = delete;
  View& operator=(const View&) = delete;
  codec::Bytes bytes() const {
    return {static_cast<const uint8_t*>(buffer_.buf), static_cast<size_t>(buffer_.len)};
  }

 private:
  Py_buffer buffer_;
};

}  // namespace onnxcomp
