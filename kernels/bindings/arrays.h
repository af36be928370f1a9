#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <string>

// What doors to Python that take arrays have in common.

namespace onnxcomp {

namespace nb = nanobind;

template <class T, size_t kRank>
using Array = nb::ndarray<const T, nb::ndim<kRank>, nb::c_contig, nb::device::cpu>;

inline int64_t length(size_t size) { return static_cast<int64_t>(size); }

// Raises ValueError where there is a defect.
inline void refuse(const std::string& defect) {
  if (!defect.empty()) throw nb::value_error(defect.c_str());
}

}  // namespace onnxcomp
