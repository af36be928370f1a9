#pragma once

// The directory of a container (docs/container.md), every field checked.

#include "codec/geometry.h"
#include "decode/cut.h"
#include "decode/failure.h"

namespace onnxcomp::decode {

using codec::Bytes;

enum Features : uint32_t { kNeedsBase = 1, kExternalData = 2, kTellsErrors = 4 };
inline constexpr uint32_t kKnownFeatures = kNeedsBase | kExternalData | kTellsErrors;
inline constexpr uint64_t kHeaderBytes = 16;
inline constexpr int kMostFields = 64;
inline constexpr int kWholeAxis = 255;

enum class Kind : uint8_t { kInteger = 1, kPlanes = 2, kGrid = 3, kCodebook = 4, kSame = 5, kTrellis = 6 };

struct Chunk {
  uint64_t offset;
  uint32_t length;
  uint32_t checksum;
};

// Numbers that codes are looked up in or multiplied with.
struct Table {
  uint64_t count;
  uint32_t item;      // bytes of a number
  bool is_stream;     // otherwise they are `bytes`
  uint8_t bytes[16];
};

struct Planes {
  uint8_t source;  // data type of what the fields make up
  bool rotated;
  uint8_t count;
  uint8_t widths[kMostFields];
};

struct Entry {
  uint64_t gap;
  uint64_t size;  // bytes
  uint64_t packed;
  uint64_t hash;
  uint32_t name_start;
  uint32_t name_length;
  size_t first_dim;    // in Directory::dims
  size_t first_chunk;  // in Directory::chunks, stream after stream
  int rank;
  int data_type;
  int bits;
  bool initializer;
  Kind kind;
  Planes planes;
  Table table;         // scales of a grid, values of a codebook
  int axis;            // of a grid or a trellis
  uint64_t block;
  int along;           // axis of the sequences of a trellis
  bool of_base;        // `same`
  uint64_t same;       // index

  bool has_table() const noexcept { return is_grid() || kind == Kind::kCodebook; }
  bool is_grid() const noexcept { return kind == Kind::kGrid || kind == Kind::kTrellis; }
  int streams() const noexcept { return kind == Kind::kSame ? 0 : kind == Kind::kPlanes ? planes.count : 1; }
  Cut table_cut() const noexcept { return Cut(table.item, table.count, 1, 8); }
};

struct Directory {
  uint64_t skeleton_size = 0;
  uint64_t skeleton_packed = 0;
  uint64_t base = 0;  // hash
  uint64_t end = 0;   // of the last payload
  bool needs_base = false;
  bool external = false;
  Array<Entry> entries;
  Array<uint64_t> dims;
  Array<Chunk> chunks;

  explicit Directory(Budget* budget) noexcept : entries(budget), dims(budget), chunks(budget) {}

  onnxcomp_status read(Bytes bytes, uint32_t features, const Budget& budget, onnxcomp_error* error) noexcept;
  Cut cut(const Entry& entry) const noexcept;
};

}  // namespace onnxcomp::decode
