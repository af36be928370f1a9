#include "codec/row_model.h"

#include <algorithm>

#if defined(__SSE2__) || defined(_M_X64)
#include <emmintrin.h>
#endif

#include "codec/row_context.h"

namespace onnxcomp::codec::rans {
namespace {

constexpr int kPredictionOrder = 4;
constexpr int kScaleOrder = 4;
constexpr int kBiasOrder = 7;
constexpr int kStartOrder = 6;
constexpr int32_t kLargestWeight = 4096;  // keeps every sum of products below 2^31
constexpr int32_t kLargestBias = 1 << 24;
constexpr int32_t kLargestRow = kLargestContext << kRowMemory;
constexpr int32_t kLargestColumn = 2 * kLanes * kLargestContext;

bool within(int64_t value, int64_t largest) { return value >= -largest && value <= largest; }

int32_t sum_of_magnitudes(const int8_t* contexts, int lanes) {
#if defined(__SSE2__) || defined(_M_X64)
  if (lanes == kLanes) {
    const __m128i zero = _mm_setzero_si128();
    const auto sums = [&](const int8_t* from) {
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
      return _mm_sad_epu8(_mm_min_epu8(bytes, _mm_sub_epi8(zero, bytes)), zero);
    };
    const __m128i both = _mm_add_epi64(sums(contexts), sums(contexts + 16));
    return _mm_cvtsi128_si32(_mm_add_epi64(both, _mm_unpackhi_epi64(both, both)));
  }
#endif
  int32_t sum = 0;
  for (int lane = 0; lane < lanes; ++lane) sum += magnitude_of(contexts[lane]);
  return sum;
}

int32_t pair(int32_t low, int32_t high) {
  return static_cast<int32_t>((static_cast<uint32_t>(low) & 0xffff) | static_cast<uint32_t>(high) << 16);
}

}  // namespace

void write_row_model(const RowModel& model, BitWriter* writer) {
  writer->write(static_cast<uint32_t>(model.mean_levels / 2), 3);
  writer->write(static_cast<uint32_t>(model.scale_levels - 1), 5);
  writer->write(static_cast<uint32_t>(model.center), 8);
  writer->write_golomb(static_cast<uint64_t>(model.start_row), kStartOrder);
  writer->write_golomb(static_cast<uint64_t>(model.start_column), kStartOrder);
  writer->write(model.weights.size() > 1, 1);
  for (const PositionWeights& weights : model.weights) {
    if (model.mean_levels > 1) {
      for (const int32_t w : weights.prediction) writer->write_signed_golomb(w, kPredictionOrder);
    }
    if (model.scale_levels > 1) {
      for (const int32_t w : weights.scale) writer->write_signed_golomb(w, kScaleOrder);
      writer->write_signed_golomb(weights.bias, kBiasOrder);
    }
  }
}

Status read_row_model(BitReader* reader, Geometry geometry, RowModel* model) {
  model->mean_levels = 1 + 2 * static_cast<int>(reader->read(3));
  model->scale_levels = 1 + static_cast<int>(reader->read(5));
  model->center = static_cast<int>(reader->read(8));
  const uint64_t start_row = reader->read_golomb(kStartOrder);
  const uint64_t start_column = reader->read_golomb(kStartOrder);
  const bool by_position = reader->read(1) == 1;
  if (reader->overrun()) return Status::kTruncated;
  if (model->classes() > kMaxClasses || start_row > kLargestRow || start_column > kLargestColumn ||
      geometry.row_length() > kMaxRowLength)
    return Status::kBadHeader;
  model->start_row = static_cast<int32_t>(start_row);
  model->start_column = static_cast<int32_t>(start_column);
  model->weights.resize(by_position ? static_cast<size_t>(geometry.kernel) : 1);
  for (PositionWeights& weights : model->weights) {
    weights = {};
    bool sane = true;
    const auto read = [&](int32_t* value, int order, int32_t largest) {
      const int64_t found = reader->read_signed_golomb(order);
      sane = sane && within(found, largest);
      *value = static_cast<int32_t>(found);
    };
    if (model->mean_levels > 1) {
      for (int32_t& w : weights.prediction) read(&w, kPredictionOrder, kLargestWeight);
    }
    if (model->scale_levels > 1) {
      for (int32_t& w : weights.scale) read(&w, kScaleOrder, kLargestWeight);
      read(&weights.bias, kBiasOrder, kLargestBias);
    }
    if (reader->overrun()) return Status::kTruncated;
    if (!sane) return Status::kBadHeader;
  }
  return Status::kOk;
}

std::vector<RowPosition> lane_positions(const RowModel& model) {
  std::vector<RowPosition> positions;
  for (const PositionWeights& w : model.weights) {
    positions.push_back({{pair(w.prediction[0], w.prediction[1]), pair(w.prediction[2], w.prediction[3]),
                          pair(w.prediction[4], 0)},
                         {pair(w.scale[0], w.scale[0]), pair(w.scale[0], 0), pair(w.scale[1], w.scale[2])},
                         w.scale[3],
                         w.bias});
  }
  return positions;
}

std::vector<int8_t> symbol_contexts(const Header& header, int32_t center) {
  std::vector<int8_t> contexts(static_cast<size_t>(header.symbols), 0);  // an escaped code's is 0
  for (int s = 0; s < header.alphabet(); ++s)
    contexts[static_cast<size_t>(s)] = static_cast<int8_t>(clamped(s - center, -kLargestContext, kLargestContext));
  return contexts;
}

RowGroups::RowGroups(const RowModel& model, Geometry geometry, int lanes)
    : model_(model),
      length_(geometry.row_length()),
      far_(far_of(geometry)),
      lanes_(lanes),
      positions_(lane_positions(model)),
      columns_(static_cast<size_t>(length_), model.start_column),
      symbols_(static_cast<size_t>(length_ * kLanes)),
      contexts_(static_cast<size_t>((length_ + far_) * kLanes), 0) {}

void RowGroups::begin(int active) {
  active_ = active;
  rows = {};
  std::fill(rows.magnitude, rows.magnitude + kLanes, model_.start_row);
}

void RowGroups::end() {
  const int8_t* contexts = contexts_.data() + far_ * kLanes;
  for (int64_t j = 0; j < length_; ++j, contexts += kLanes) {
    const int32_t sum = sum_of_magnitudes(contexts, lanes_);
    int32_t& column = columns_[static_cast<size_t>(j)];
    column = (column >> 1) + sum * (kLanes / lanes_);
  }
}

RowTable RowGroups::table(const uint32_t* entries, const Header& header) const {
  return {entries,
          header.resolution,
          header.escape ? static_cast<uint32_t>(header.symbols - 1) << 24 : kNoEscape,
          model_.center,
          model_.mean_levels,
          model_.scale_levels,
          positions_.data(),
          static_cast<int64_t>(positions_.size()),
          far_};
}

RowGroup RowGroups::group() {
  return {length_, active_, columns_.data(), symbols_.data(), contexts_.data() + far_ * kLanes};
}

}  // namespace onnxcomp::codec::rans
