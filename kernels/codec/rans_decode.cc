#include <algorithm>

#include "codec/class_tables.h"
#include "codec/lane_decoder.h"
#include "codec/rans_header.h"
#include "codec/tiles.h"

namespace onnxcomp::codec::rans {
namespace {

Status read_table(BitReader* reader, const Header& header, FrequencyTable* table) {
  table->resolution = header.resolution;
  table->symbols = header.symbols;
  table->frequency.resize(static_cast<size_t>(header.symbols));
  return read_frequencies(reader, header.symbols, header.resolution, table->frequency.data());
}

// Everything between a payload's first two bytes and its escaped codes.
struct Model {
  Header header;
  FrequencyTable table;
  Tiles tiles;
  RowModel rows;
};

Status read_model(Profile profile, Geometry geometry, BitReader* reader, Model* model) {
  Status status = read_header(reader, &model->header);
  if (status != Status::kOk) return status;
  switch (profile) {
    case Profile::kTable:
      return read_table(reader, model->header, &model->table);
    case Profile::kParametric:
      return read_classes(reader, model->header, 1, &model->table);
    case Profile::kTiles:
      status = read_tiles(reader, geometry.count(), &model->tiles);
      if (status != Status::kOk) return status;
      return read_classes(reader, model->header, model->tiles.classes, &model->table);
    case Profile::kRows:
      status = read_row_model(reader, geometry, &model->rows);
      if (status != Status::kOk) return status;
      return read_classes(reader, model->header, model->rows.classes(), &model->table);
  }
  return Status::kUnknownProfile;
}

Status decode_tiles(const Tiles& tiles, int64_t count, LaneDecoder* decoder) {
  const auto tile_count = static_cast<int64_t>(tiles.class_of.size());
  for (int64_t tile = 0; tile < tile_count;) {
    int64_t next = tile + 1;  // tiles of one class are decoded together
    const uint8_t c = tiles.class_of[static_cast<size_t>(tile)];
    while (next < tile_count && tiles.class_of[static_cast<size_t>(next)] == c) ++next;
    const int64_t begin = tile << tiles.length_log2;
    const int64_t end = std::min(count, next << tiles.length_log2);
    const Status status = decoder->decode(c, begin, end - begin);
    if (status != Status::kOk) return status;
    tile = next;
  }
  return Status::kOk;
}

}  // namespace

Status decode(Bytes payload, Geometry geometry, const LaneKernel& kernel, const Sink& sink) {
  if (payload.data[1] >= kProfiles) return Status::kUnknownProfile;
  const auto profile = static_cast<Profile>(payload.data[1]);
  const Bytes body = {payload.data + 2, payload.size - 2};
  BitReader reader(body);
  Model model;
  Status status = read_model(profile, geometry, &reader, &model);
  if (status != Status::kOk) return status;
  if (!reader.padding_is_zero()) return Status::kBadHeader;

  LaneDecoder decoder(model.header, model.table, geometry, kernel, sink);
  status = decoder.open({body.data + reader.position(), body.size - reader.position()});
  if (status != Status::kOk) return status;
  if (profile == Profile::kTiles)
    status = decode_tiles(model.tiles, geometry.count(), &decoder);
  else if (profile == Profile::kRows)
    status = decoder.decode_rows(model.rows);
  else
    status = decoder.decode(0, 0, geometry.count());
  return status == Status::kOk ? decoder.close() : status;
}

}  // namespace onnxcomp::codec::rans
