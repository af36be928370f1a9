#pragma once

#include <nanobind/stl/tuple.h>

#include <new>
#include <tuple>
#include <vector>

#include "bindings/arrays.h"
#include "convolution/geometry.h"
#include "entries/entry_lists.h"

// What the doors of sparse products have in common.

namespace onnxcomp {

using Integers = Array<int32_t, 1>;
// taps, stride, dilation, padding before and after
using Axis = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>;

template <class Values>
PackedLengths lengths_of(const Values& values, const Integers& indices, const Integers& offsets) {
  return {length(values.size()), length(indices.size()), length(offsets.size())};
}

template <class Product>
void run_tasks(const Product& product) {
  for (int64_t task = 0; task < product.task_count(); ++task) product.run(task);
}

template <class Product>
void run(const Product& product) {
  for (int64_t task = 0; task < product.fill_task_count(); ++task) product.fill(task);
  for (int64_t task = 0; task < product.multiply_task_count(); ++task) product.multiply(task);
}

// A new array, once `compute` has filled it.
template <class T, class Compute>
nb::object filled(const std::vector<size_t>& shape, const Compute& compute) {
  double bytes = sizeof(T);
  size_t count = 1;
  for (const size_t size : shape) {
    bytes *= static_cast<double>(size);
    count *= size;
  }
  if (bytes > 1e13) throw std::bad_alloc();  // before the count wraps around
  T* y = new T[count];
  nb::capsule owner(y, [](void* memory) noexcept { delete[] static_cast<T*>(memory); });
  {
    nb::gil_scoped_release unlocked;
    compute(y);
  }
  return nb::cast(nb::ndarray<nb::numpy, T>(y, shape.size(), shape.data(), owner));
}

inline ConvAxis axis_of(const Axis& axis) {
  return {std::get<0>(axis), std::get<1>(axis), std::get<2>(axis), std::get<3>(axis),
          std::get<4>(axis)};
}

// Raises ValueError where a number is out of range.
inline ConvShape window_of(const Axis& rows, const Axis& columns) {
  const ConvShape window{axis_of(rows), axis_of(columns)};
  refuse(find_defect(window));
  return window;
}

// [images, channels, rows, columns]
inline std::vector<size_t> output_shape(const ConvShape& window, size_t images, int64_t channels,
                                        int64_t height, int64_t width) {
  std::vector<size_t> shape{images};
  for (const int64_t size : {channels, window.rows.outputs(height), window.columns.outputs(width)}) {
    if (size < 1) throw nb::value_error("x is smaller than the kernel");
    shape.push_back(static_cast<size_t>(size));
  }
  return shape;
}

}  // namespace onnxcomp
