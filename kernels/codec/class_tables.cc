#include "codec/class_tables.h"

#include <algorithm>
#include <numeric>

#include "codec/parametric_table.h"

namespace onnxcomp::codec::rans {
namespace {

constexpr int kShapeBits = 4;
constexpr int kEscapeOrder = 2;
constexpr int kSpreadOrder = 1;
constexpr int kMeanOrder = 3;

// What all Gaussian classes of a payload share, and the one before.
struct Shared {
  int shape = 8;
  int escape_frequency = 0;
  GaussianParameters previous;
};

int gaussian_slots(const Header& header, const Shared& shared) {
  return (1 << header.resolution) - shared.escape_frequency;
}

void make_gaussian(const GaussianParameters& parameters, const Header& header, const Shared& shared,
                   uint16_t* frequency) {
  gaussian_frequencies(parameters, header.alphabet(), gaussian_slots(header, shared), frequency);
  if (header.escape) frequency[header.symbols - 1] = static_cast<uint16_t>(shared.escape_frequency);
}

void write_shared(const Header& header, const Shared& shared, BitWriter* writer) {
  writer->write(static_cast<uint32_t>(shared.shape - kSmallestShape), kShapeBits);
  if (header.escape) writer->write_golomb(static_cast<uint64_t>(shared.escape_frequency), kEscapeOrder);
}

int delta_bits(const GaussianParameters& parameters, const Shared& shared) {
  const auto folded = [](int value) { return static_cast<uint64_t>(value < 0 ? -2 * value - 1 : 2 * value); };
  return golomb_length(folded(parameters.spread - shared.previous.spread), kSpreadOrder) +
         golomb_length(folded(parameters.mean - shared.previous.mean), kMeanOrder);
}

// The escape's share of all counts, in slots.
int escape_slots(const std::vector<uint32_t>& counts, const Header& header) {
  uint64_t total = 0, escaped = 0;
  for (size_t i = 0; i < counts.size(); ++i) {
    total += counts[i];
    if (static_cast<int>(i % static_cast<size_t>(header.symbols)) == header.symbols - 1) escaped += counts[i];
  }
  const uint64_t share = total == 0 ? 0 : (escaped << header.resolution) / total;
  return static_cast<int>(std::clamp<uint64_t>(share, 1, uint64_t{1} << (header.resolution - 1)));
}

// Of the class with most codes; the others are much like it.
int best_shape(const std::vector<uint32_t>& counts, const Header& header, const Shared& shared) {
  const auto symbols = static_cast<size_t>(header.symbols);
  uint64_t most = 0;
  const uint32_t* largest = counts.data();
  for (size_t first = 0; first < counts.size(); first += symbols) {
    const uint64_t total = std::accumulate(counts.data() + first, counts.data() + first + symbols, uint64_t{0});
    if (total <= most) continue;
    most = total;
    largest = counts.data() + first;
  }
  uint64_t length;
  return fit_gaussian(largest, header.alphabet(), gaussian_slots(header, shared), header.resolution, 0, &length).shape;
}

}  // namespace

ClassTables write_classes(const std::vector<uint32_t>& counts, const Header& header, BitWriter* writer) {
  const int symbols = header.symbols;
  const int classes = static_cast<int>(counts.size()) / symbols;
  ClassTables result = {{header.resolution, symbols, {}}, 0};
  result.table.frequency.resize(counts.size());
  Shared shared;
  if (header.escape) shared.escape_frequency = escape_slots(counts, header);
  if (header.alphabet() > gaussian_slots(header, shared)) shared.escape_frequency = 1;
  shared.shape = best_shape(counts, header, shared);
  shared.previous.mean = 8 * header.alphabet();
  write_shared(header, shared, writer);
  std::vector<uint16_t> gaussian(static_cast<size_t>(symbols));
  for (int c = 0; c < classes; ++c) {
    const uint32_t* counted = counts.data() + c * symbols;
    uint16_t* frequency = result.table.frequency.data() + c * symbols;
    fit_frequencies(counted, symbols, header.resolution, frequency);
    BitWriter trial;
    write_frequencies(frequency, symbols, header.resolution, &trial);
    const uint64_t explicit_length = coded_length(counted, frequency, symbols, header.resolution) +
                                     (static_cast<uint64_t>(trial.bit_count()) << 16);
    uint64_t length;
    const bool empty = std::all_of(counted, counted + symbols, [](uint32_t n) { return n == 0; });
    const GaussianParameters parameters =
        empty ? shared.previous : fit_gaussian(counted, header.alphabet(), gaussian_slots(header, shared),
                                               header.resolution, shared.shape, &length);
    make_gaussian(parameters, header, shared, gaussian.data());
    const uint64_t gaussian_length = coded_length(counted, gaussian.data(), symbols, header.resolution) +
                                     (static_cast<uint64_t>(delta_bits(parameters, shared)) << 16);
    const bool is_gaussian = gaussian_length <= explicit_length;
    writer->write(is_gaussian, 1);
    result.length += std::min(gaussian_length, explicit_length);
    if (!is_gaussian) {
      write_frequencies(frequency, symbols, header.resolution, writer);
      continue;
    }
    writer->write_signed_golomb(parameters.spread - shared.previous.spread, kSpreadOrder);
    writer->write_signed_golomb(parameters.mean - shared.previous.mean, kMeanOrder);
    shared.previous.spread = parameters.spread;
    shared.previous.mean = parameters.mean;
    std::copy(gaussian.begin(), gaussian.end(), frequency);
  }
  return result;
}

Status read_classes(BitReader* reader, const Header& header, int classes, FrequencyTable* table) {
  table->resolution = header.resolution;
  table->symbols = header.symbols;
  table->frequency.resize(static_cast<size_t>(classes * header.symbols));
  Shared shared;
  shared.shape = kSmallestShape + static_cast<int>(reader->read(kShapeBits));
  shared.previous.mean = 8 * header.alphabet();
  if (header.escape) {
    const uint64_t escape = reader->read_golomb(kEscapeOrder);
    if (escape == 0 || escape + static_cast<uint64_t>(header.alphabet()) > uint64_t{1} << header.resolution)
      return reader->overrun() ? Status::kTruncated : Status::kBadTable;
    shared.escape_frequency = static_cast<int>(escape);
  }
  if (header.alphabet() > gaussian_slots(header, shared)) return Status::kBadTable;
  for (int c = 0; c < classes; ++c) {
    uint16_t* frequency = table->frequency.data() + c * header.symbols;
    if (reader->read(1) == 0) {
      const Status status = read_frequencies(reader, header.symbols, header.resolution, frequency);
      if (status != Status::kOk) return status;
      continue;
    }
    const int64_t spread = shared.previous.spread + reader->read_signed_golomb(kSpreadOrder);
    const int64_t mean = shared.previous.mean + reader->read_signed_golomb(kMeanOrder);
    if (reader->overrun()) return Status::kTruncated;
    if (spread < -kLargestSpread || spread > kLargestSpread || mean < -kLargestMean || mean > kLargestMean)
      return Status::kBadTable;
    shared.previous = {static_cast<int>(mean), static_cast<int>(spread), shared.shape};
    make_gaussian(shared.previous, header, shared, frequency);
  }
  return reader->overrun() ? Status::kTruncated : Status::kOk;
}

}  // namespace onnxcomp::codec::rans
