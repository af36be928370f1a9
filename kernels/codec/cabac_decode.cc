#include "codec/cabac.h"
#include "codec/cabac_contexts.h"

namespace onnxcomp::codec::cabac {
namespace {

// Where an arithmetic decoder is: its range, the code's distance from the range's start, and the part of
// the range that stands for a 1 as the next bit.
struct Place {
  uint64_t range, low, bound;
};

// The next bit as a mask, and the place behind it, where `bound` is one of these two: they are known before
// the bit is, and a decoder waits for nothing but its own subtractions.
ONNXCOMP_INLINE uint64_t take(Place* at, uint64_t if_one, uint64_t if_zero) noexcept {
  uint64_t rest = at->range - at->bound;
#if defined(__x86_64__) && defined(__GNUC__)
  // Compilers make branches of it.
  uint64_t low = at->low, mask;
  __asm__("sub %[bound], %[low]\n\t"
          "cmovb %[before], %[low]\n\t"
          "cmovb %[bound], %[rest]\n\t"
          "cmovb %[one], %[zero]\n\t"
          "sbb %[mask], %[mask]"
          : [low] "+&r"(low), [rest] "+&r"(rest), [zero] "+&r"(if_zero), [mask] "=&r"(mask)
          : [before] "r"(at->low), [bound] "r"(at->bound), [one] "r"(if_one)
          : "cc");
  *at = {rest, low, if_zero};
#else
  const uint64_t mask = 0 - static_cast<uint64_t>(at->low < at->bound);
  rest ^= (rest ^ at->bound) & mask;
  *at = {rest, at->low - (at->bound & ~mask), if_zero ^ ((if_zero ^ if_one) & mask)};
#endif
  return mask;
}

class Decoder {
 public:
  // `bytes` begin with the arithmetic code.
  Decoder(Bytes bytes, const Model& model, Geometry geometry, int32_t* codes)
      : bytes_(bytes), model_(model), geometry_(geometry), statistics_(model, geometry), codes_(codes) {
    low_ = next();
    low_ = low_ << 32 | next();
  }

  template <int kDepth>
  void all() {
    for (int64_t row = 0; row < geometry_.rows; ++row) one_row<kDepth>(codes_ + row * geometry_.row_length());
  }

  // Whether the encoder ends here: all bytes read, at most eight zeros more, and its last bits.
  Status end() const noexcept {
    if (!intact_) return Status::kBadEscape;
    if (position_ < bytes_.size) return Status::kTrailingBytes;
    if (position_ - bytes_.size > 8) return Status::kTruncated;
    return low_ < range_ >> kEndBits ? Status::kOk : Status::kBadState;
  }

 private:
  template <int kDepth>
  void one_row(int32_t* codes) {
    constexpr uint32_t last = (uint32_t{1} << kDepth) - 1;
    Contexts contexts(model_, geometry_, &statistics_);
    Place at = {range_, low_, 0};
    const auto center = static_cast<uint32_t>(model_.center);
    for (const int32_t* const end = codes + geometry_.row_length(); codes < end; ++codes) {
      contexts.lean<kDepth>();
      Estimate* const significance = contexts.nodes<kDepth>(magnitude_of(contexts.side()));
      at.bound = part_of(at.range, *significance);
      contexts.look_ahead();
      if (at.low >= at.bound) {
        at.range -= at.bound;
        at.low -= at.bound;
        update(significance, 0);
        renormalise(&at);
        *codes = static_cast<int32_t>(center);
        contexts.push(0, 0);
        continue;
      }
      at.range = at.bound;
      update(significance, ~uint64_t{0});
      renormalise(&at);
      uint64_t negative;
      uint32_t magnitude = signed_leaf<kDepth>(&at, contexts, &negative) - last, kept = magnitude;
      if (ONNXCOMP_RARE(magnitude > last)) {
        const uint32_t clip = static_cast<uint32_t>(model_.clip()), rest = remainder(&at, kDepth);
        kept = rest < clip - magnitude ? magnitude + rest : clip;
        magnitude += rest;
      }
      const auto sign = static_cast<uint32_t>(negative);
      *codes = static_cast<int32_t>(((magnitude ^ sign) - sign) + center);
      contexts.push(static_cast<int32_t>((kept ^ sign) - sign), static_cast<int32_t>(kept));
    }
    range_ = at.range;
    low_ = at.low;
  }

  // The leaf of the tree of magnitudes that a code is at which is not zero.
  template <int kDepth>
  ONNXCOMP_INLINE uint32_t signed_leaf(Place* at, const Contexts& contexts, uint64_t* negative) noexcept {
    Estimate* const sign = contexts.sign();
    at->bound = part_of(at->range, *sign);
    if (kDepth == 0) {
      *negative = take(at, 0, 0);
      update(sign, *negative);
      renormalise(at);
      return 1;
    }
    Estimate* const plus = contexts.nodes<kDepth>(contexts.side());
    Estimate* const minus = contexts.nodes<kDepth>(-contexts.side());
    *negative = take(at, part_of(at->bound, minus[1]), part_of(at->range - at->bound, plus[1]));
    update(sign, *negative);
    Estimate* const nodes = plus + ((minus - plus) & static_cast<ptrdiff_t>(*negative));
    renormalise(at, nodes + 1);
    uint32_t node = 1;
    for (int level = 1; level < kDepth; ++level) {
      Estimate *const here = nodes + node, *const below = nodes + 2 * node;
      const uint64_t bit = take(at, part_of(at->bound, below[1]), part_of(at->range - at->bound, below[0]));
      node = 2 * node - static_cast<uint32_t>(bit);
      update(here, bit);
      renormalise(at, nodes + node);
    }
    const uint64_t bit = take(at, 0, 0);
    update(nodes + node, bit);
    renormalise(at);
    return 2 * node - static_cast<uint32_t>(bit);
  }

  // Exp-Golomb of order `depth`, with an estimate for each bit of the prefix.
  ONNXCOMP_COLD uint32_t remainder(Place* at, int depth) noexcept {
    int top = depth;
    while (top < kPrefixes && prefix_bit(at, top)) ++top;
    if (top == kPrefixes) {
      intact_ = false;
      return 0;
    }
    uint32_t read = 1;
    for (int b = top - 1; b >= 0; --b) {
      at->range >>= 1;
      at->bound = at->low >= at->range ? at->range : 0;
      at->low -= at->bound;
      read = read * 2 + (at->bound != 0);
      renormalise(at);
    }
    const uint32_t result = read - (uint32_t{1} << depth);
    intact_ &= result <= (uint32_t{1} << 31) - (uint32_t{1} << depth);
    return result;
  }

  bool prefix_bit(Place* at, int top) noexcept {
    Estimate* const estimate = &statistics_.prefix[static_cast<size_t>(top)];
    at->bound = part_of(at->range, *estimate);
    const uint64_t bit = take(at, 0, 0);
    update(estimate, bit);
    renormalise(at);
    return bit != 0;
  }

  ONNXCOMP_INLINE void renormalise(Place* at) noexcept {
    if (ONNXCOMP_RARE(at->range < kShortRange)) {
      at->range <<= 32;
      at->low = at->low << 32 | next();
    }
  }

  // `bound` as the estimate has it, of the new range.
  ONNXCOMP_INLINE void renormalise(Place* at, const Estimate* estimate) noexcept {
    if (ONNXCOMP_RARE(at->range < kShortRange)) {
      renormalise(at);
      at->bound = part_of(at->range, *estimate);
    }
  }

  // Zeros behind the end.
  ONNXCOMP_COLD uint32_t next() noexcept {
    uint32_t word = 0;
    for (size_t i = position_; i < position_ + 4; ++i)
      word = word << 8 | (i < bytes_.size ? bytes_.data[i] : 0u);
    position_ += 4;
    return word;
  }

  uint64_t range_ = ~uint64_t{0};
  uint64_t low_;
  const Bytes bytes_;
  size_t position_ = 0;
  const Model& model_;
  const Geometry geometry_;
  Statistics statistics_;
  int32_t* const codes_;
  bool intact_ = true;
};

}  // namespace

Status decode(Bytes payload, Geometry geometry, int32_t* codes) {
  if (payload.size < 2) return Status::kTruncated;
  if (payload.data[1] >= kProfiles) return Status::kUnknownProfile;
  Model model;
  model.profile = static_cast<Profile>(payload.data[1]);
  BitReader reader({payload.data + 2, payload.size - 2});
  const Status status = read_model(&reader, geometry, &model);
  if (status != Status::kOk) return status;
  if (!reader.padding_is_zero()) return Status::kBadHeader;
  prepare(&model);
  const size_t begin = 2 + reader.position();
  Decoder decoder({payload.data + begin, payload.size - begin}, model, geometry, codes);
  with_depth(model.depth, &decoder);
  return decoder.end();
}

}  // namespace onnxcomp::codec::cabac
