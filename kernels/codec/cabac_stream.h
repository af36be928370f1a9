#pragma once

// Binarization and contexts: what encoder and decoder share.

#include <utility>
#include <vector>

#include "codec/cabac_coder.h"
#include "codec/cabac_model.h"
#include "codec/cabac_window.h"

namespace onnxcomp::codec::cabac {

inline constexpr int kPrefixes = 32;

// The codes of a chunk, in order, and what is known of those before.
template <class Coder>
class Stream {
 public:
  using Code = typename Coder::Code;

  Stream(Coder coder, const Model& model, Geometry geometry)
      : coder(std::move(coder)),
        far_(far_of(geometry)),
        recent_(static_cast<size_t>(geometry.row_length() + far_), 0),
        columns_(static_cast<size_t>(geometry.row_length()), model.start >> (kRowMemory - kColumnMemory)),
        tree_((static_cast<size_t>(model.scale_levels) * static_cast<size_t>(model.mean_levels)) << model.depth),
        sign_(static_cast<size_t>(model.mean_levels)),
        prefix_(kPrefixes) {}

  void begin_row(const Model& model) {
    row_ = model.start;
    window_ = {};
  }

  // Codes `*code`, which a decoder sets, at `column` of the row.
  template <int kDepth>
  ONNXCOMP_INLINE void code(const Model& model, const Neighbours& weights, int64_t column, Code* code) {
    int8_t* const here = recent_.data() + far_ + column;
    int32_t& of_column = columns_[static_cast<size_t>(column)];
    const Leanings leanings = window_.lean(weights, here[-far_], *here, row_, of_column);
    const int32_t half = model.mean_levels / 2;
    const int32_t side = clamped((leanings.mean + (1 << model.mean_shift >> 1)) >> model.mean_shift, -half, half);
    const int32_t level = clamped(leanings.scale >> (model.scale_shift + kRowMemory), 0, model.scale_levels - 1);

    Interval at = coder.interval;
    int32_t kept;
    const int32_t known = Coder::kDecodes ? 0 : *code;
    const int32_t value = binary<kDepth>(&at, model, level * model.mean_levels + half, side, known, &kept);
    Coder::set(code, value);
    coder.interval = at;
    const int32_t magnitude = magnitude_of(kept);
    window_.push(kept);
    *here = static_cast<int8_t>(kept);
    row_ += magnitude - (row_ >> kRowMemory);
    of_column += magnitude - (of_column >> kColumnMemory);
  }

  bool intact() const noexcept { return intact_; }
  Coder coder;

 private:
  // Significance, sign, a tree of the magnitudes up to 2^depth - 1, a remainder. `middle` is the level's
  // array of nodes that leans to no side, `kept` is what neighbours see.
  template <int kDepth>
  ONNXCOMP_INLINE int32_t binary(Interval* at, const Model& model, int32_t middle, int32_t side, int32_t code,
                                 int32_t* kept) {
    const auto value = static_cast<int32_t>(static_cast<uint32_t>(code) - static_cast<uint32_t>(model.center));
    *kept = 0;
    Estimate* const zero = &tree_[static_cast<size_t>(middle + magnitude_of(side)) << kDepth];
    if (!coder.bit(at, zero, value != 0)) return model.center;
    const bool negative = coder.bit(at, &sign_[static_cast<size_t>(side + model.mean_levels / 2)], value < 0);
    const uint32_t sign = 0u - negative;
    constexpr uint32_t last = (uint32_t{1} << kDepth) - 1;
    const uint32_t above = (static_cast<uint32_t>(value) ^ sign) - sign - 1;
    const uint32_t leaf = above < last ? above : last;
    const int32_t leaning = (side ^ static_cast<int32_t>(sign)) - static_cast<int32_t>(sign);
    Estimate* const nodes = &tree_[static_cast<size_t>(middle + leaning) << kDepth];
    uint32_t node = 1;
    for (int b = kDepth - 1; b >= 0; --b) node = node * 2 + coder.bit(at, nodes + node, (leaf >> b & 1) != 0);
    uint32_t magnitude = node - last;
    *kept = static_cast<int32_t>((magnitude ^ sign) - sign);
    if (magnitude > last) {
      const uint32_t rest = remainder(at, kDepth, above - last);
      const uint32_t clip = static_cast<uint32_t>(model.clip());
      *kept = static_cast<int32_t>(((rest < clip - magnitude ? magnitude + rest : clip) ^ sign) - sign);
      magnitude += rest;
    }
    return static_cast<int32_t>(((magnitude ^ sign) - sign) + static_cast<uint32_t>(model.center));
  }

  // Exp-Golomb of order `depth`, with an estimate for each bit of the prefix.
  ONNXCOMP_COLD uint32_t remainder(Interval* at, int depth, uint32_t value) {
    const uint32_t raised = value + (uint32_t{1} << depth);
    int top = depth;
    const auto longer = [&] { return top < 31 && raised >> (top + 1) != 0; };
    while (top < kPrefixes && coder.bit(at, &prefix_[static_cast<size_t>(top)], longer())) ++top;
    if (top == kPrefixes) {
      intact_ = false;
      return 0;
    }
    uint32_t read = 1;
    for (int b = top - 1; b >= 0; --b) read = read * 2 + coder.raw(at, (raised >> b & 1) != 0);
    const uint32_t result = read - (uint32_t{1} << depth);
    intact_ &= result <= (uint32_t{1} << 31) - (uint32_t{1} << depth);
    return result;
  }

  const int64_t far_;
  std::vector<int8_t> recent_;  // `far` zeros, then the row above until a code takes its place
  std::vector<int32_t> columns_;
  std::vector<Estimate> tree_;  // [scale level][side][node]; node 0 is the significance
  std::vector<Estimate> sign_;
  std::vector<Estimate> prefix_;
  int32_t row_ = 0;
  Window window_;
  bool intact_ = true;
};

template <int kDepth, class Coder>
void code_rows(Stream<Coder>* stream, const Model& model, Geometry geometry, typename Coder::Code* codes) {
  const int64_t length = geometry.row_length(), positions = positions_of(model.profile, geometry);
  for (int64_t row = 0; row < geometry.rows; ++row) {
    stream->begin_row(model);
    int64_t position = 0;
    for (int64_t column = 0; column < length; ++column) {
      stream->template code<kDepth>(model, model.weights[static_cast<size_t>(position)], column, codes++);
      position = position + 1 < positions ? position + 1 : 0;
    }
  }
}

// All codes in C order; the depth is known to the compiler.
template <class Coder>
void code_all(Stream<Coder>* stream, const Model& model, Geometry geometry, typename Coder::Code* codes) {
  switch (model.depth) {
    case 0: return code_rows<0>(stream, model, geometry, codes);
    case 1: return code_rows<1>(stream, model, geometry, codes);
    case 2: return code_rows<2>(stream, model, geometry, codes);
    case 3: return code_rows<3>(stream, model, geometry, codes);
    case 4: return code_rows<4>(stream, model, geometry, codes);
    case 5: return code_rows<5>(stream, model, geometry, codes);
    default: return code_rows<6>(stream, model, geometry, codes);
  }
}

}  // namespace onnxcomp::codec::cabac
