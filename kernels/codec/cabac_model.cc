#include "codec/cabac_model.h"

namespace onnxcomp::codec::cabac {
namespace {

constexpr int kCenterOrder = 1;
constexpr int kStartOrder = 6;
constexpr int kWeightBits = 8;
constexpr int kBiasBits = 14;
constexpr int32_t kMaxStart = 127 * 32;

void write_signed(int32_t value, int width, BitWriter* writer) {
  writer->write(static_cast<uint32_t>(value) & ((uint32_t{1} << width) - 1), width);
}

int32_t read_signed(int width, BitReader* reader) {
  const int32_t half = 1 << (width - 1);
  return (static_cast<int32_t>(reader->read(width)) ^ half) - half;
}

}  // namespace

void prepare(Model* model) {
  for (Neighbours& weights : model->weights) {
    for (int i = 0; i < 8; ++i) weights.means[i] = static_cast<int16_t>(i < 5 ? weights.mean[i] : 0);
    for (int i = 0; i < 4; ++i) weights.scales[i] = static_cast<int16_t>(weights.scale[i] * 32);
    weights.scales[4] = static_cast<int16_t>(weights.scale[4]);
    weights.scales[5] = static_cast<int16_t>(weights.scale[5] * 4);
    weights.scales[6] = static_cast<int16_t>(weights.bias);
    weights.scales[7] = 0;
    weights.size_before = weights.scale[0] * 32 + weights.scale[4];
  }
}

void write_model(const Model& model, BitWriter* writer) {
  writer->write(static_cast<uint32_t>(model.depth), 3);
  writer->write_signed_golomb(model.center, kCenterOrder);
  if (model.profile == Profile::kPlain) return;
  writer->write(static_cast<uint32_t>(model.scale_levels - 1), 3);
  writer->write(static_cast<uint32_t>(model.mean_levels / 2), 2);
  writer->write(static_cast<uint32_t>(model.scale_shift), 4);
  writer->write(static_cast<uint32_t>(model.mean_shift), 4);
  writer->write_golomb(static_cast<uint32_t>(model.start), kStartOrder);
  for (const Neighbours& weights : model.weights) {
    for (const int32_t weight : weights.mean) write_signed(weight, kWeightBits, writer);
    for (const int32_t weight : weights.scale) write_signed(weight, kWeightBits, writer);
    write_signed(weights.bias, kBiasBits, writer);
  }
}

Status read_model(BitReader* reader, Geometry geometry, Model* model) {
  if (positions_of(model->profile, geometry) > kMaxPositions) return Status::kBadGeometry;
  model->depth = static_cast<int>(reader->read(3));
  const int64_t center = reader->read_signed_golomb(kCenterOrder);
  if (model->depth > kMaxDepth || center != static_cast<int32_t>(center)) return Status::kBadHeader;
  model->center = static_cast<int32_t>(center);
  model->weights.assign(static_cast<size_t>(positions_of(model->profile, geometry)), Neighbours{});
  if (model->profile == Profile::kPlain) return reader->overrun() ? Status::kTruncated : Status::kOk;
  model->scale_levels = static_cast<int>(reader->read(3)) + 1;
  model->mean_levels = static_cast<int>(reader->read(2)) * 2 + 1;
  model->scale_shift = static_cast<int>(reader->read(4));
  model->mean_shift = static_cast<int>(reader->read(4));
  const uint64_t start = reader->read_golomb(kStartOrder);
  if (start > kMaxStart) return Status::kBadHeader;
  model->start = static_cast<int32_t>(start);
  for (Neighbours& weights : model->weights) {
    for (int32_t& weight : weights.mean) weight = read_signed(kWeightBits, reader);
    for (int32_t& weight : weights.scale) weight = read_signed(kWeightBits, reader);
    weights.bias = read_signed(kBiasBits, reader);
  }
  return reader->overrun() ? Status::kTruncated : Status::kOk;
}

}  // namespace onnxcomp::codec::cabac
