#include "codec/alphabet.h"
#include "codec/lane_encoder.h"
#include "codec/rans_header.h"

namespace onnxcomp::codec::rans {
namespace {

std::vector<Run> consecutive_runs(int64_t count, int lanes) {
  std::vector<Run> runs = {{count / lanes, lanes}};
  if (count % lanes > 0) runs.push_back({1, static_cast<int>(count % lanes)});
  return runs;
}

void append(std::vector<uint8_t>* bytes, const std::vector<uint8_t>& more) {
  bytes->insert(bytes->end(), more.begin(), more.end());
}

std::vector<uint8_t> encode_table(const int32_t* codes, int64_t count, bool prefer_speed) {
  const Alphabet alphabet = choose_alphabet(codes, count);
  Header header = alphabet.header;
  header.lanes_log2 = affordable_lanes_log2(alphabet.length >> 19, count, prefer_speed);
  const Symbols symbols = split_codes(codes, count, header);
  header.side_bytes = symbols.side.size();
  FrequencyTable table = {header.resolution, header.symbols, {}};
  table.frequency.resize(static_cast<size_t>(header.symbols));
  fit_frequencies(alphabet.counts.data(), header.symbols, header.resolution, table.frequency.data());
  BitWriter writer;
  writer.write(1, 8);
  writer.write(static_cast<uint32_t>(Profile::kTable), 8);
  write_header(header, &writer);
  write_frequencies(table.frequency.data(), header.symbols, header.resolution, &writer);
  std::vector<uint8_t> payload = writer.take();
  append(&payload, symbols.side);
  append(&payload, symbols.low);
  append(&payload, encode_lanes(symbols.symbols, consecutive_runs(count, header.lanes()), table, header.lanes()));
  return payload;
}

}  // namespace

std::vector<uint8_t> encode(const int32_t* codes, Geometry geometry, Profile profile, bool prefer_speed) {
  if (profile != Profile::kTable) return {};
  return encode_table(codes, geometry.count(), prefer_speed);
}

}  // namespace onnxcomp::codec::rans
