#include "codec/lane_decoder.h"
#include "codec/rans_header.h"

namespace onnxcomp::codec::rans {
namespace {

Status decode_table(BitReader* reader, const Header& header, FrequencyTable* table) {
  table->resolution = header.resolution;
  table->symbols = header.symbols;
  table->frequency.resize(static_cast<size_t>(header.symbols));
  return read_frequencies(reader, header.symbols, header.resolution, table->frequency.data());
}

}  // namespace

Status decode(Bytes payload, Geometry geometry, const LaneKernel& kernel, const Sink& sink) {
  if (payload.data[1] >= kProfiles) return Status::kUnknownProfile;
  const Bytes body = {payload.data + 2, payload.size - 2};
  BitReader reader(body);
  Header header;
  Status status = read_header(&reader, &header);
  if (status != Status::kOk) return status;
  FrequencyTable table;
  status = decode_table(&reader, header, &table);
  if (status != Status::kOk) return status;
  if (!reader.padding_is_zero()) return Status::kBadHeader;

  LaneDecoder decoder(header, table, geometry, kernel, sink);
  status = decoder.open({body.data + reader.position(), body.size - reader.position()});
  if (status == Status::kOk) status = decoder.decode(0, 0, geometry.count());
  return status == Status::kOk ? decoder.close() : status;
}

}  // namespace onnxcomp::codec::rans
