#pragma once

#include "entries/entry_lists.h"
#include "fuzz/reader.h"

// What the targets of packed weights have in common.

namespace onnxcomp::fuzz {

// The three arrays of packed weights, of exactly as many numbers as the input says.
template <class Value>
class PackedLists {
 public:
  // Reads the lengths of values, indices and offsets; offsets; indices; then read_values(length).
  template <class ReadValues>
  PackedLists(Reader& reader, const ReadValues& read_values)
      : lengths_{reader.length(), reader.length(), reader.length()},
        offsets_(reader.array<int32_t>(lengths_.offsets)),
        indices_(reader.array<int32_t>(lengths_.indices)),
        values_(read_values(lengths_.values)) {}

  // `weights` point here from now on.
  template <class Weights>
  void lend(Weights* weights) const {
    weights->values = values_.data();
    weights->indices = indices_.data();
    weights->offsets = offsets_.data();
  }
  const PackedLengths& lengths() const { return lengths_; }

 private:
  PackedLengths lengths_;
  Exact<int32_t> offsets_, indices_;
  Exact<Value> values_;
};

template <class Product>
void run_tasks(const Product& product) {
  for (int64_t task = 0; task < product.task_count(); ++task) product.run(task);
  keep(static_cast<uint32_t>(product.work()));
}

template <class Product>
void run(const Product& product) {
  for (int64_t task = 0; task < product.fill_task_count(); ++task) product.fill(task);
  for (int64_t task = 0; task < product.multiply_task_count(); ++task) product.multiply(task);
  keep(static_cast<uint32_t>(product.work()));
}

}  // namespace onnxcomp::fuzz
