#include "decode/directory.h"

#include "decode/cursor.h"
#include "decode/data_types.h"

namespace onnxcomp::decode {
namespace {

constexpr uint64_t kLargestTensor = uint64_t{1} << 36;  // bytes
constexpr uint64_t kLargestData = uint64_t{1} << 42;    // bytes of a data file
constexpr uint64_t kLargestSkeleton = (uint64_t{1} << 31) - 1;
constexpr uint64_t kLongestPayload = uint64_t{1} << 24;
constexpr uint64_t kMostDims = 64;
constexpr uint64_t kSmallestError = (1 << 14) - 1;
constexpr uint64_t kLargestCodebook = 4096;
constexpr uint64_t kSmallestStream = 17;  // bytes of a table; below, it is part of the directory
constexpr const char* kNoMemory = "";     // the defect when an array could not grow

class Reader {
 public:
  Reader(Bytes bytes, uint32_t features, Directory* directory) noexcept
      : cursor_(bytes), features_(features), directory_(*directory) {}

  void read() noexcept {
    directory_.needs_base = (features_ & kNeedsBase) != 0;
    directory_.external = (features_ & kExternalData) != 0;
    directory_.skeleton_size = cursor_.number(kLargestSkeleton, "size of the skeleton");
    directory_.skeleton_packed = cursor_.number(uint64_t{1} << 31, "length of the skeleton");
    if (directory_.needs_base) directory_.base = cursor_.fixed(8, "hash of the base");
    const uint64_t count = cursor_.number(cursor_.left(), "number of tensors");
    directory_.end = kHeaderBytes + directory_.skeleton_packed;
    uint64_t room = directory_.external ? kLargestData : directory_.skeleton_size;
    for (index = 0; index < count; ++index) {
      Entry entry = {};
      read_entry(&entry);
      const uint64_t needed = entry.gap + (directory_.external ? entry.size : 0);
      if (needed > room) cursor_.wrong("place outside the file");
      room -= needed;
      if (uint64_t{entry.name_start} + entry.name_length > directory_.skeleton_size)
        cursor_.wrong("name outside the skeleton");
      if (!directory_.entries.push(entry)) cursor_.wrong(kNoMemory);
      if (cursor_.defect != nullptr) return;
    }
    if (cursor_.defect == nullptr && cursor_.left() != 0) cursor_.wrong("bytes left over");
  }

  const char* defect() const noexcept { return cursor_.defect; }

  uint64_t index = 0;

 private:
  void read_entry(Entry* entry) noexcept {
    entry->initializer = cursor_.number(1, "flags") != 0;
    entry->gap = cursor_.number(kLargestTensor, "gap");
    entry->name_length = static_cast<uint32_t>(cursor_.number(kLargestSkeleton, "length of its name"));
    if (entry->name_length > 0)
      entry->name_start = static_cast<uint32_t>(cursor_.number(kLargestSkeleton, "place of its name"));
    entry->data_type = static_cast<int>(cursor_.number(255, "data type"));
    entry->bits = bits_of(entry->data_type);
    if (entry->bits == 0) cursor_.wrong("data type");
    read_dims(entry);
    if (cursor_.defect != nullptr) return;
    entry->kind = static_cast<Kind>(cursor_.take_byte("representation"));
    read_representation(entry);
    if (cursor_.defect != nullptr) return;
    read_chunks(entry);
    if ((features_ & kTellsErrors) != 0) cursor_.number(kSmallestError, "error");  // of no use to a decoder
    entry->hash = cursor_.fixed(8, "hash");
  }

  // The product is below 2^37 whatever the dimensions: no sum or product of the code overflows.
  void read_dims(Entry* entry) noexcept {
    entry->first_dim = directory_.dims.size();
    entry->rank = static_cast<int>(cursor_.number(kMostDims, "rank"));
    uint64_t product = 1;
    bool empty = false;
    for (int axis = 0; axis < entry->rank; ++axis) {
      const uint64_t size = cursor_.number(kLargestTensor, "dimension");
      empty |= size == 0;
      if (size > 0 && product > kLargestTensor / size) cursor_.wrong("shape, which is too large");
      if (cursor_.defect != nullptr) return;
      product *= size > 0 ? size : 1;
      if (!directory_.dims.push(size)) cursor_.wrong(kNoMemory);
    }
    const uint64_t numbers = empty ? 0 : is_complex(entry->data_type) ? 2 * product : product;
    entry->size = (numbers * static_cast<uint64_t>(entry->bits) + 7) / 8;
    if (entry->size > kLargestTensor) cursor_.wrong("shape, which is too large");
  }

  void read_representation(Entry* entry) noexcept {
    switch (entry->kind) {
      case Kind::kInteger:
        return;
      case Kind::kPlanes:
        return read_planes(entry);
      case Kind::kGrid:
        return read_grid(entry);
      case Kind::kTrellis:
        entry->along = cursor_.take_byte("axis of its sequences");
        if (entry->rank < 2 || entry->along >= entry->rank || directory_.cut(*entry).splits_rows())
          cursor_.wrong("axis of its sequences");
        return read_grid(entry);
      case Kind::kCodebook: {
        const uint64_t count = cursor_.number(kLargestCodebook, "size of its codebook");
        if (entry->bits < 8) cursor_.wrong("codebook of a type without whole bytes");
        return read_table(count, static_cast<uint32_t>(entry->bits / 8), &entry->table);
      }
      case Kind::kSame:
        return read_same(entry);
    }
    cursor_.wrong("representation");
  }

  void read_planes(Entry* entry) noexcept {
    Planes& planes = entry->planes;
    planes.source = cursor_.take_byte("source type");
    if (entry->bits < 8) cursor_.wrong("planes of a type without whole bytes");
    if (!widens(planes.source, entry->data_type)) cursor_.wrong("source type");
    planes.rotated = cursor_.number(1, "rotation") != 0;
    planes.count = static_cast<uint8_t>(cursor_.number(kMostFields, "number of fields"));
    int bits = 0;
    for (int field = 0; field < planes.count; ++field) {
      planes.widths[field] = cursor_.take_byte("width of a field");
      if (planes.widths[field] < 1 || planes.widths[field] > 31) cursor_.wrong("width of a field");
      bits += planes.widths[field];
    }
    if (bits != bits_of(planes.source)) cursor_.wrong("widths of its fields");
  }

  void read_grid(Entry* entry) noexcept {
    if (!is_float(entry->data_type)) cursor_.wrong("grid of a type without one");
    entry->axis = cursor_.take_byte("axis of its scales");
    entry->block = cursor_.number(uint64_t{1} << 31, "block of its scales");
    const bool whole = entry->axis == kWholeAxis;
    if ((whole && entry->block > 0) || (!whole && entry->axis >= entry->rank)) cursor_.wrong("axis of its scales");
    if (cursor_.defect != nullptr) return;
    const uint64_t* dims = directory_.dims.data() + entry->first_dim;
    uint64_t scales = whole ? 1 : entry->block > 0 ? 1 : dims[entry->axis], numbers = 1;
    for (int axis = 0; entry->block > 0 && axis < entry->rank; ++axis)
      scales *= axis == entry->axis ? (dims[axis] + entry->block - 1) / entry->block : dims[axis];
    for (int axis = 0; axis < entry->rank; ++axis) numbers *= dims[axis];
    if (!whole && scales > numbers) cursor_.wrong("scales, more than numbers");
    read_table(scales, 4, &entry->table);
  }

  void read_table(uint64_t count, uint32_t item, Table* table) noexcept {
    table->count = count;
    table->item = item;
    table->is_stream = count * item >= kSmallestStream;
    for (uint64_t i = 0; !table->is_stream && i < count * item; ++i) table->bytes[i] = cursor_.take_byte("table");
  }

  void read_same(Entry* entry) noexcept {
    entry->of_base = cursor_.number(1, "file of the same tensor") != 0;
    entry->same = cursor_.number(uint64_t{1} << 31, "index of the same tensor");
    if (cursor_.defect != nullptr) return;
    if (entry->of_base) {
      if (!directory_.needs_base) cursor_.wrong("base, which the header does not announce");
      return;
    }
    if (entry->same >= directory_.entries.size() ||
        directory_.entries[static_cast<size_t>(entry->same)].kind == Kind::kSame ||
        directory_.entries[static_cast<size_t>(entry->same)].size != entry->size)
      cursor_.wrong("index of the same tensor");
  }

  void read_chunks(Entry* entry) noexcept {
    entry->first_chunk = directory_.chunks.size();
    uint64_t count = static_cast<uint64_t>(entry->streams()) * directory_.cut(*entry).chunks();
    if (entry->has_table() && entry->table.is_stream) count += entry->table_cut().chunks();
    for (uint64_t i = 0; i < count && cursor_.defect == nullptr; ++i) {
      Chunk chunk = {directory_.end, 0, 0};
      chunk.length = static_cast<uint32_t>(cursor_.number(kLongestPayload, "length of a chunk"));
      chunk.checksum = static_cast<uint32_t>(cursor_.fixed(4, "checksum of a chunk"));
      directory_.end += chunk.length;
      entry->packed += chunk.length;
      if (!directory_.chunks.push(chunk)) cursor_.wrong(kNoMemory);
    }
  }

  Cursor cursor_;
  uint32_t features_;
  Directory& directory_;
};

}  // namespace

onnxcomp_status Directory::read(Bytes bytes, uint32_t features, const Budget& budget,
                                onnxcomp_error* error) noexcept {
  Reader reader(bytes, features, this);
  reader.read();
  if (reader.defect() == nullptr) return ONNXCOMP_OK;
  if (reader.defect() == kNoMemory) return fail_memory(error, budget, "the directory");
  return fail(error, ONNXCOMP_CORRUPT, "directory, tensor %llu: wrong %s",
              static_cast<unsigned long long>(reader.index), reader.defect());
}

Cut Directory::cut(const Entry& entry) const noexcept {
  const uint64_t* dims = this->dims.data() + entry.first_dim;
  const bool complex = is_complex(entry.data_type);
  const int rank = entry.rank + (complex ? 1 : 0);
  const auto size = [&](int axis) { return axis < entry.rank ? dims[axis] : uint64_t{2}; };
  if (rank == 0) return Cut(1, 1, 1, entry.bits);
  if (rank == 1) return Cut(1, size(0), 1, entry.bits);
  uint64_t kernel = 1;
  for (int axis = 2; axis < rank; ++axis) kernel *= size(axis);
  return Cut(size(0), size(1), kernel, entry.bits);
}

}  // namespace onnxcomp::decode
