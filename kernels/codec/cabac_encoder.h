#pragma once

// The arithmetic encoder and its binarization.

#include <utility>
#include <vector>

#include "codec/cabac_contexts.h"

namespace onnxcomp::codec::cabac {

class Encoder {
 public:
  Encoder(const Model& model, Geometry geometry, const int32_t* codes)
      : model_(model), geometry_(geometry), statistics_(model, geometry), codes_(codes) {}

  template <int kDepth>
  void all() {
    for (int64_t row = 0; row < geometry_.rows; ++row) one_row<kDepth>(codes_ + row * geometry_.row_length());
  }

  // Of the numbers that decode to this the one with most zeros behind, without those.
  std::vector<uint8_t> finish() {
    const uint64_t range = interval_.range >> kEndBits, low = interval_.low;
    uint64_t last = low;
    for (int zeros = 63; zeros >= 0; --zeros) {
      const uint64_t step = (uint64_t{1} << zeros) - 1;
      last = (low + step) & ~step;
      if (last - low < range) break;
    }
    interval_.carry += last < low;
    carry(interval_.carry);
    std::vector<uint8_t> bytes(words_.size() * 4);
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(words_[i / 4] >> (3 - i % 4) * 8);
    for (; last != 0; last <<= 8) bytes.push_back(static_cast<uint8_t>(last >> 56));
    return bytes;
  }

 private:
  struct Interval {
    uint64_t range = ~uint64_t{0};
    uint64_t low = 0;
    uint32_t carry = 0;  // into the words before: 0 or 1
  };

  template <int kDepth>
  void one_row(const int32_t* codes) {
    Contexts contexts(model_, geometry_, &statistics_);
    Interval at = interval_;
    const auto center = static_cast<uint32_t>(model_.center);
    for (const int32_t* const end = codes + geometry_.row_length(); codes < end; ++codes) {
      contexts.lean<kDepth>();
      contexts.look_ahead();
      const uint32_t value = static_cast<uint32_t>(*codes) - center;
      Estimate* const significance = contexts.nodes<kDepth>(magnitude_of(contexts.side()));
      if (value == 0) {
        bit(&at, significance, 0);
        contexts.push(0, 0);
        continue;
      }
      bit(&at, significance, ~uint64_t{0});
      const uint32_t sign = 0 - (value >> 31);
      const uint32_t magnitude = signed_leaf<kDepth>(&at, contexts, (value ^ sign) - sign, sign);
      contexts.push(static_cast<int32_t>((magnitude ^ sign) - sign), static_cast<int32_t>(magnitude));
    }
    interval_ = at;
  }

  // Sign, a tree of the magnitudes up to 2^depth - 1, a remainder. Returns the magnitude that neighbours see.
  template <int kDepth>
  ONNXCOMP_INLINE uint32_t signed_leaf(Interval* at, const Contexts& contexts, uint32_t magnitude, uint32_t sign) {
    bit(at, contexts.sign(), static_cast<uint64_t>(static_cast<int64_t>(static_cast<int32_t>(sign))));
    constexpr uint32_t last = (uint32_t{1} << kDepth) - 1;
    const uint32_t leaf = magnitude - 1 < last ? magnitude - 1 : last;
    const auto flip = static_cast<int32_t>(sign);
    Estimate* const nodes = contexts.nodes<kDepth>((contexts.side() ^ flip) - flip);
    uint32_t node = 1;
    for (int b = kDepth - 1; b >= 0; --b) {
      const uint32_t value = leaf >> b & 1;
      bit(at, nodes + node, 0 - static_cast<uint64_t>(value));
      node = 2 * node + value;
    }
    if (!ONNXCOMP_RARE(magnitude > last)) return magnitude;
    remainder(at, kDepth, magnitude - 1 - last);
    const auto clip = static_cast<uint32_t>(model_.clip());
    return magnitude < clip ? magnitude : clip;
  }

  // Exp-Golomb of order `depth`, with an estimate for each bit of the prefix.
  ONNXCOMP_COLD void remainder(Interval* at, int depth, uint32_t value) {
    const uint32_t raised = value + (uint32_t{1} << depth);
    int top = depth;
    for (bool longer = true; longer; top += longer) {
      longer = top < 31 && raised >> (top + 1) != 0;
      bit(at, &statistics_.prefix[static_cast<size_t>(top)], 0 - static_cast<uint64_t>(longer));
    }
    for (int b = top - 1; b >= 0; --b) {
      at->range >>= 1;
      add(at, (raised >> b & 1) != 0 ? at->range : 0);
      renormalise(at);
    }
  }

  ONNXCOMP_INLINE void bit(Interval* at, Estimate* estimate, uint64_t mask) {
    const uint64_t bound = part_of(at->range, *estimate), rest = at->range - bound;
    update(estimate, mask);
    at->range = rest + (mask & (bound - rest));
    add(at, ~mask & bound);
    renormalise(at);
  }

  static ONNXCOMP_INLINE void add(Interval* at, uint64_t more) {
    at->low += more;
    at->carry += at->low < more;
  }

  ONNXCOMP_INLINE void renormalise(Interval* at) {
    if (!ONNXCOMP_RARE(at->range < kShortRange)) return;
    put(at->carry, static_cast<uint32_t>(at->low >> 32));
    at->carry = 0;
    at->low <<= 32;
    at->range <<= 32;
  }

  ONNXCOMP_COLD void put(uint32_t carried, uint32_t word) {
    carry(carried);
    words_.push_back(word);
  }

  void carry(uint32_t carried) {
    for (size_t at = words_.size(); carried != 0; carried = words_[at] == 0) ++words_[--at];
  }

  const Model& model_;
  const Geometry geometry_;
  Statistics statistics_;
  const int32_t* const codes_;
  Interval interval_;
  std::vector<uint32_t> words_;
};

}  // namespace onnxcomp::codec::cabac
