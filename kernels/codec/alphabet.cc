#include "codec/alphabet.h"

#include <algorithm>

#include "codec/extremes.h"
#include "codec/fixed_point.h"
#include "codec/rans_header.h"

namespace onnxcomp::codec::rans {
namespace {

constexpr int64_t kMaxBins = 4096;
constexpr int kLargestEscapeOrder = 12;

struct Histogram {
  int low_bits;
  int64_t lowest;  // what bin 0 counts
  std::vector<uint32_t> bins;
  int64_t total;
};

Histogram count_codes(const int32_t* codes, int64_t count) {
  const auto [smallest, largest] = extremes_of(codes, count);
  int low_bits = 0;
  while ((int64_t{largest} >> low_bits) - (int64_t{smallest} >> low_bits) >= kMaxBins) ++low_bits;
  Histogram histogram = {low_bits, int64_t{smallest} >> low_bits, {}, count};
  const auto size = static_cast<size_t>((int64_t{largest} >> low_bits) - histogram.lowest + 1);
  // Four histograms by turns: neighbours are often alike, and a counter that was just stored is slow.
  std::vector<uint32_t> turns(4 * size, 0);
  const auto lowest = static_cast<int32_t>(histogram.lowest);
  for (int64_t i = 0; i < count; ++i) {
    const auto bin = static_cast<size_t>((codes[i] >> low_bits) - lowest);
    ++turns[4 * bin + static_cast<size_t>(i % 4)];
  }
  histogram.bins.resize(size);
  for (size_t bin = 0; bin < size; ++bin)
    histogram.bins[bin] = turns[4 * bin] + turns[4 * bin + 1] + turns[4 * bin + 2] + turns[4 * bin + 3];
  return histogram;
}

Histogram coarser(const Histogram& fine) {
  Histogram coarse = {fine.low_bits + 1, fine.lowest >> 1, {}, fine.total};
  const int64_t last = fine.lowest + static_cast<int64_t>(fine.bins.size()) - 1;
  coarse.bins.assign(static_cast<size_t>((last >> 1) - coarse.lowest + 1), 0);
  for (size_t i = 0; i < fine.bins.size(); ++i)
    coarse.bins[static_cast<size_t>(((fine.lowest + static_cast<int64_t>(i)) >> 1) - coarse.lowest)] += fine.bins[i];
  return coarse;
}

// Bins first .. last keep their own symbols.
struct Window {
  size_t first;
  size_t last;
};

// The bins left when at most `most` codes are cut off at either end, and no more than fit.
Window cut_window(const Histogram& histogram, int64_t most) {
  const std::vector<uint32_t>& bins = histogram.bins;
  Window window = {0, bins.size() - 1};
  for (int64_t cut = bins[0]; cut <= most && window.first < window.last; cut += bins[window.first]) ++window.first;
  for (int64_t cut = bins[window.last]; cut <= most && window.first < window.last; cut += bins[window.last]) --window.last;
  const size_t all = bins.size() <= kMaxSymbols ? kMaxSymbols : kMaxSymbols - 1;
  while (window.last - window.first + 1 > all) {
    if (bins[window.first] < bins[window.last]) ++window.first;
    else --window.last;
  }
  return window;
}

// Bits of the escaped codes with the best order.
uint64_t escape_length(const Histogram& histogram, Window window, int* best_order) {
  uint64_t best = ~uint64_t{0};
  for (int order = 0; order <= kLargestEscapeOrder; ++order) {
    uint64_t length = 0;
    for (size_t i = 0; i < window.first; ++i)
      if (histogram.bins[i] > 0)
        length += histogram.bins[i] * static_cast<uint64_t>(1 + golomb_length(window.first - 1 - i, order));
    for (size_t i = window.last + 1; i < histogram.bins.size(); ++i)
      if (histogram.bins[i] > 0)
        length += histogram.bins[i] * static_cast<uint64_t>(1 + golomb_length(i - window.last - 1, order));
    if (length < best) {
      best = length;
      *best_order = order;
    }
  }
  return best;
}

Alphabet alphabet_of(const Histogram& histogram, Window window) {
  Alphabet result;
  Header& header = result.header;
  header.low_bits = histogram.low_bits;
  header.lowest = histogram.lowest + static_cast<int64_t>(window.first);
  result.counts.assign(histogram.bins.begin() + static_cast<int64_t>(window.first),
                       histogram.bins.begin() + static_cast<int64_t>(window.last) + 1);
  const bool all = window.first == 0 && window.last + 1 == histogram.bins.size();
  header.escape = !all || result.counts.size() == 1;
  uint64_t side = 0;
  if (header.escape) {
    int64_t inside = 0;
    for (const uint32_t n : result.counts) inside += n;
    result.counts.push_back(static_cast<uint32_t>(histogram.total - inside));
    side = escape_length(histogram, window, &header.escape_order);
    header.side_bytes = static_cast<size_t>((side + 7) / 8);
  }
  header.symbols = static_cast<int>(result.counts.size());
  // Few codes cannot tell fine frequencies apart, and coarse ones are shorter to write.
  result.length = ~uint64_t{0};
  std::vector<uint16_t> frequency(result.counts.size());
  for (int resolution = kLargestResolution; resolution >= kSmallestResolution; --resolution) {
    if ((1 << resolution) <= header.symbols) break;
    fit_frequencies(result.counts.data(), header.symbols, resolution, frequency.data());
    BitWriter table;
    write_frequencies(frequency.data(), header.symbols, resolution, &table);
    const uint64_t written = (table.take().size() * 8 + side) << 16;
    const uint64_t length = written + coded_length(result.counts.data(), frequency.data(), header.symbols, resolution);
    if (length < result.length) {
      result.length = length;
      header.resolution = resolution;
    }
    if (histogram.total > 16384) break;
  }
  result.length += static_cast<uint64_t>(histogram.total * histogram.low_bits) << 16;
  return result;
}

}  // namespace

Alphabet choose_alphabet(const int32_t* codes, int64_t count) {
  Histogram histogram = count_codes(codes, count);
  Alphabet best;
  best.length = ~uint64_t{0};
  while (true) {
    const uint64_t before = best.length;
    Window last = {1, 0};
    for (int shift = 63; shift >= 5; shift = shift == 63 ? 20 : shift - 1) {
      const Window window = cut_window(histogram, shift == 63 ? 0 : count >> shift);
      if (window.first == last.first && window.last == last.last) continue;
      last = window;
      Alphabet candidate = alphabet_of(histogram, window);
      if (candidate.length < best.length) best = std::move(candidate);
    }
    if (best.length >= before || histogram.bins.size() <= 64 || histogram.low_bits == kMaxLowBits)
      return best;
    histogram = coarser(histogram);
  }
}

Symbols split_codes(const int32_t* codes, int64_t count, const Header& header) {
  Symbols result;
  result.symbols.resize(static_cast<size_t>(count));
  BitWriter side, low;
  const int64_t alphabet = header.alphabet();
  const uint32_t low_mask = (uint32_t{1} << header.low_bits) - 1;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t high = codes[i] >> header.low_bits;
    const int64_t symbol = high - header.lowest;
    const bool escaped = static_cast<uint64_t>(symbol) >= static_cast<uint64_t>(alphabet);
    result.symbols[static_cast<size_t>(i)] = static_cast<uint16_t>(escaped ? alphabet : symbol);
    if (escaped) write_escape(high, header, &side);
    if (header.low_bits > 0) low.write(static_cast<uint32_t>(codes[i]) & low_mask, header.low_bits);
  }
  result.side = side.take();
  result.low = low.take();
  return result;
}

int affordable_lanes_log2(uint64_t payload_bytes, int64_t count, bool prefer_speed) {
  if (prefer_speed) return count >= 2048 ? 5 : 0;
  int lanes_log2 = 0;  // 0.2 % of the payload
  while (lanes_log2 < 5 && payload_bytes >= uint64_t{2000} << lanes_log2) ++lanes_log2;
  return lanes_log2;
}

}  // namespace onnxcomp::codec::rans
