#include <algorithm>
#include <cmath>

#include "codec/class_tables.h"
#include "codec/plan.h"
#include "codec/row_context.h"
#include "codec/row_fit.h"

namespace onnxcomp::codec::rans {
namespace {

// From here on, weights for each position of a kernel are tried alone.
constexpr int64_t kWorthItsWeights = 1 << 15;

// Class and symbol of every code, in coding order, and how often each occurs.
struct Classified {
  std::vector<uint16_t> symbols;
  std::vector<uint32_t> counts;
  std::vector<Run> runs;
};

// The symbols of rows first .. first + active - 1 side by side, and the contexts they become.
void fill_group(const Source& source, const int8_t* contexts, int64_t first, const RowGroup& group) {
  for (int lane = 0; lane < group.active; ++lane) {
    const uint16_t* symbols = source.split.symbols.data() + (first + lane) * group.length;
    uint8_t* symbol = group.symbols + lane;
    int8_t* context = group.contexts + lane;
    for (int64_t j = 0; j < group.length; ++j, symbol += kLanes, context += kLanes) {
      *symbol = static_cast<uint8_t>(symbols[j]);
      *context = contexts[symbols[j]];
    }
  }
}

Classified classify(const Source& source, const RowModel& model, const Header& header) {
  const int64_t length = source.geometry.row_length(), rows = source.geometry.rows;
  const int lanes = header.lanes();
  RowGroups groups(model, source.geometry, lanes);
  RowTable table = groups.table(nullptr, header);
  table.resolution = 0;
  const std::vector<int8_t> contexts = symbol_contexts(header, model.center);
  std::vector<uint8_t> classes(static_cast<size_t>(length * kLanes));
  Classified result;
  result.symbols.resize(static_cast<size_t>(length * rows));
  result.counts.assign(static_cast<size_t>(model.classes() * header.symbols), 0);
  uint16_t* next = result.symbols.data();
  for (int64_t first = 0; first < rows; first += lanes) {
    const int active = static_cast<int>(std::min<int64_t>(lanes, rows - first));
    groups.begin(active);
    const RowGroup group = groups.group();
    fill_group(source, contexts.data(), first, group);
    source.kernel.classify_rows(table, group, &groups.rows, classes.data());
    for (int64_t j = 0; j < length * kLanes; j += kLanes) {
      for (int64_t i = j; i < j + active; ++i) {
        *next = static_cast<uint16_t>(classes[static_cast<size_t>(i)] * header.symbols + group.symbols[i]);
        ++result.counts[*next++];
      }
    }
    result.runs.push_back({length, active});
    if (active == lanes) groups.end();
  }
  return result;
}

Plan plan_with(const Source& source, const RowModel& model, const Header& header) {
  Plan plan;
  plan.profile = Profile::kRows;
  plan.header = header;
  Classified classified = classify(source, model, header);
  write_row_model(model, &plan.tables);
  const auto before = static_cast<uint64_t>(plan.tables.bit_count()) << 16;
  ClassTables classes = write_classes(classified.counts, header, &plan.tables);
  plan.table = std::move(classes.table);
  plan.symbols = std::move(classified.symbols);
  plan.runs = std::move(classified.runs);
  plan.length = classes.length + before;
  return plan;
}

}  // namespace

Plan plan_rows(const Source& source) {
  const int64_t length = source.geometry.row_length();
  if (length > kMaxRowLength || length < 4) return {};
  Header header = source.alphabet.header;
  header.lanes_log2 = affordable_lanes_log2(source.alphabet.length >> 19, source.geometry.count(), source.prefer_speed);
  while (header.lanes_log2 > 0 && source.geometry.rows <= header.lanes() / 2) --header.lanes_log2;
  Plan best;
  for (const bool by_position : {false, true}) {
    const bool can_be = source.geometry.kernel > 1 && source.geometry.kernel <= 49;
    if (by_position ? !can_be : can_be && source.geometry.count() > kWorthItsWeights) continue;
    const RowModel model = fit_row_model(source, header, by_position);
    header.resolution = model.classes() > 16 ? 10 : 11;
    if (header.symbols > 128) header.resolution = kLargestResolution;
    Plan plan = plan_with(source, model, header);
    if (plan.length < best.length) best = std::move(plan);
  }
  return best;
}

}  // namespace onnxcomp::codec::rans
