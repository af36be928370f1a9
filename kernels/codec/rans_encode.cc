#include <algorithm>
#include <utility>

#include "codec/class_tables.h"
#include "codec/fixed_point.h"
#include "codec/payload.h"
#include "codec/plan.h"
#include "codec/rans_header.h"
#include "codec/tiles.h"

namespace onnxcomp::codec::rans {
namespace {

constexpr uint64_t kWorthRows = 500;  // share of the payload that rows have to save

std::vector<Run> consecutive_runs(int64_t count, int lanes) {
  std::vector<Run> runs = {{count / lanes, lanes}};
  if (count % lanes > 0) runs.push_back({1, static_cast<int>(count % lanes)});
  return runs;
}

void append(std::vector<uint8_t>* bytes, const std::vector<uint8_t>& more) {
  bytes->insert(bytes->end(), more.begin(), more.end());
}

uint64_t whole_bits(const BitWriter& writer) { return static_cast<uint64_t>(writer.bit_count()) << 16; }

Plan plan_table(const Source& source) {
  Plan plan;
  plan.header = source.alphabet.header;
  const Header& header = plan.header;
  plan.table = {header.resolution, header.symbols, {}};
  plan.table.frequency.resize(static_cast<size_t>(header.symbols));
  uint16_t* frequency = plan.table.frequency.data();
  const uint32_t* counts = source.alphabet.counts.data();
  fit_frequencies(counts, header.symbols, header.resolution, frequency);
  write_frequencies(frequency, header.symbols, header.resolution, &plan.tables);
  plan.length = coded_length(counts, frequency, header.symbols, header.resolution) + whole_bits(plan.tables);
  return plan;
}

Plan plan_parametric(const Source& source) {
  Plan plan;
  plan.profile = Profile::kParametric;
  plan.header = source.alphabet.header;
  plan.header.resolution = kLargestResolution;  // costs nothing here
  ClassTables classes = write_classes(source.alphabet.counts, plan.header, &plan.tables);
  plan.table = std::move(classes.table);
  plan.length = classes.length;
  return plan;
}

Plan plan_tiles(const Source& source) {
  Plan plan;
  plan.profile = Profile::kTiles;
  plan.header = source.alphabet.header;
  const Tiles tiles = choose_tiles(source.split.symbols, source.alphabet, source.geometry);
  if (tiles.classes < 2) return plan;
  const auto width = static_cast<size_t>(plan.header.symbols);
  std::vector<uint32_t> counts(static_cast<size_t>(tiles.classes) * width, 0);
  plan.symbols = source.split.symbols;
  for (size_t i = 0; i < plan.symbols.size(); ++i) {
    const size_t tile = i >> tiles.length_log2;
    plan.symbols[i] = static_cast<uint16_t>(plan.symbols[i] + tiles.class_of[tile] * width);
    ++counts[plan.symbols[i]];
  }
  plan.header.resolution = kLargestResolution;
  write_tiles(tiles, &plan.tables);
  const uint64_t before = whole_bits(plan.tables);
  ClassTables classes = write_classes(counts, plan.header, &plan.tables);
  plan.table = std::move(classes.table);
  plan.length = classes.length + before;
  return plan;
}

std::vector<uint8_t> finish(Plan plan, const Source& source) {
  Header& header = plan.header;
  header.side_bytes = source.split.side.size();
  const int64_t count = source.geometry.count();
  if (plan.profile != Profile::kRows) {
    header.lanes_log2 = affordable_lanes_log2(plan.length >> 19, count, source.prefer_speed);
    plan.runs = consecutive_runs(count, header.lanes());
  }
  std::vector<uint16_t> symbols = plan.symbols.empty() ? source.split.symbols : std::move(plan.symbols);
  BitWriter writer;
  writer.write(1, 8);
  writer.write(static_cast<uint32_t>(plan.profile), 8);
  write_header(header, &writer);
  writer.append(&plan.tables);
  std::vector<uint8_t> payload = writer.take();
  append(&payload, source.split.side);
  append(&payload, source.split.low);
  append(&payload, encode_lanes(std::move(symbols), plan.runs, plan.table, header.lanes()));
  return payload;
}

Plan plan_of(Profile profile, const Source& source) {
  switch (profile) {
    case Profile::kTable:
      return plan_table(source);
    case Profile::kParametric:
      return plan_parametric(source);
    case Profile::kTiles:
      return plan_tiles(source);
    case Profile::kRows:
      return plan_rows(source);
  }
  return {};
}

}  // namespace

std::vector<uint8_t> encode(const int32_t* codes, Geometry geometry, const LaneKernel& kernel,
                            int profile, bool prefer_speed) {
  const Alphabet alphabet = choose_alphabet(codes, geometry.count());
  const Symbols split = split_codes(codes, geometry.count(), alphabet.header);
  const Source source = {alphabet, split, geometry, kernel, prefer_speed};
  Plan best;
  for (int p = 0; p < kProfiles; ++p) {
    if (profile >= 0 ? p != profile : prefer_speed && p == static_cast<int>(Profile::kRows)) continue;
    Plan plan = plan_of(static_cast<Profile>(p), source);
    // Rows decode three times as slowly as a table.
    const bool slow = p == static_cast<int>(Profile::kRows) && best.length >> 19 > kSmallPayload && profile < 0;
    const uint64_t wanted = slow ? best.length / kWorthRows : 0;
    if (plan.length < best.length - wanted) best = std::move(plan);
  }
  if (best.length == ~uint64_t{0}) return {};
  return finish(std::move(best), source);
}

}  // namespace onnxcomp::codec::rans
