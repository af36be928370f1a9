#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "onnxruntime/arguments.h"

// Tokens of sparse products: X [..., features] -> Y [..., out_features].

namespace onnxcomp::ort {

// How many X has, and the output's shape.
struct Tokens {
  int64_t count;
  std::vector<int64_t> output;
};

// `type` is what the elements of X are called.
inline Tokens tokens_of(const std::vector<int64_t>& x, const char* type, int64_t features,
                        int64_t out_features) {
  if (x.empty() || x.back() != features)
    throw InvalidArgument("X has shape " + describe(x) + ", expected " + type + " [..., " +
                          std::to_string(features) + "]");
  Tokens tokens{1, x};
  tokens.output.back() = out_features;
  for (size_t axis = 0; axis + 1 < x.size(); ++axis) tokens.count *= x[axis];
  return tokens;
}

// The shape of the output when the model is loaded: that of X, which is input 0, but for its last
// dimension, which is the attribute `out_features`.
inline void infer_token_output(FunctionTable api, ShapeInferContext* context,
                               const char* out_features, ElementType type) {
  SymbolicShape shape = input_shape(api, context, 0);
  if (shape.sizes.empty()) return;  // unknown rank looks like this
  shape.sizes.back() = shape_attribute(api, context, out_features);
  shape.names.back() = "";
  set_output_shape(api, context, shape, type);
}

}  // namespace onnxcomp::ort
