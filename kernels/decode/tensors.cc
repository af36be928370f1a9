#include <cstdio>
#include <cstring>

#include "codec/crc32c.h"
#include "codec/dispatch.h"
#include "codec/payload.h"
#include "codec/xxh3.h"
#include "decode/checksum.h"
#include "decode/container.h"
#include "decode/numbers.h"

namespace onnxcomp::decode {

onnxcomp_status Container::decode(size_t index, uint8_t* out, onnxcomp_error* error) {
  const Entry& entry = directory_.entries[index];
  onnxcomp_status status = ONNXCOMP_OK;
  if (entry.kind == Kind::kSame) {
    status = decode_same(entry, out, error);
  } else {
    Array<uint8_t> table(&budget_);
    if (entry.has_table()) status = decode_table(index, &table, error);
    const uint64_t chunks = directory_.cut(entry).chunks();
    for (uint64_t chunk = 0; chunk < chunks && status == ONNXCOMP_OK; ++chunk)
      status = decode_chunk(index, chunk, table, out, error);
  }
  if (status != ONNXCOMP_OK) return status;
  const uint64_t hash = codec::xxh3_64({out, static_cast<size_t>(entry.size)});
  return holds(hash, entry.hash) ? ONNXCOMP_OK : corrupt(index, "its decoded values have another hash", error);
}

onnxcomp_status Container::decode_same(const Entry& entry, uint8_t* out, onnxcomp_error* error) {
  Container* other = entry.of_base ? base_ : this;
  if (other == nullptr)
    return fail(error, ONNXCOMP_NEEDS_BASE, "a delta package needs the container that it was made from");
  const auto same = static_cast<size_t>(entry.same);
  const Array<Entry>& entries = other->directory_.entries;
  if (entry.same >= entries.size() || entries[same].size != entry.size)
    return fail(error, ONNXCOMP_CORRUPT, "a tensor is none of the base's");
  return other->decode(same, out, error);
}

// The bytes of the numbers of a table, from the directory or from its stream.
onnxcomp_status Container::decode_table(size_t index, Array<uint8_t>* table, onnxcomp_error* error) {
  const Entry& entry = directory_.entries[index];
  const uint64_t count = entry.table.count, item = entry.table.item;
  if (!table->resize(count * item)) return fail_memory(error, budget_, "the table of a tensor");
  if (!entry.table.is_stream) {
    if (count > 0) std::memcpy(table->data(), entry.table.bytes, table->size());
    return ONNXCOMP_OK;
  }
  const Cut cut = entry.table_cut();
  const uint64_t first = directory_.cut(entry).chunks();  // behind the chunks of codes
  for (uint64_t chunk = 0; chunk < cut.chunks(); ++chunk) {
    const codec::Geometry geometry = cut.geometry(chunk);
    const onnxcomp_status status = decode_codes(index, first + chunk, geometry, error);
    if (status != ONNXCOMP_OK) return status;
    for (int64_t i = 0; i < geometry.count(); ++i) {  // row after row, the most significant bytes first
      const uint64_t flat = cut.start(chunk) + static_cast<uint64_t>(i);
      const uint64_t place = flat % count * item + item - 1 - flat / count;
      (*table)[static_cast<size_t>(place)] = static_cast<uint8_t>(codes_[static_cast<size_t>(i)]);
    }
  }
  return ONNXCOMP_OK;
}

// One chunk of all streams of codes into its place of the tensor.
onnxcomp_status Container::decode_chunk(size_t index, uint64_t chunk, const Array<uint8_t>& table, uint8_t* out,
                                        onnxcomp_error* error) {
  const Entry& entry = directory_.entries[index];
  const Cut cut = directory_.cut(entry);
  const codec::Geometry geometry = cut.geometry(chunk);
  const auto count = static_cast<uint64_t>(geometry.count());
  const uint64_t* dims = directory_.dims.data() + entry.first_dim;
  uint8_t* target = out + cut.start(chunk) * static_cast<uint64_t>(entry.bits) / 8;
  Array<uint64_t> numbers(&budget_);
  if (entry.kind == Kind::kPlanes) {
    if (!numbers.resize(count)) return fail_memory(error, budget_, "the numbers of a chunk");
    std::memset(numbers.data(), 0, numbers.size() * sizeof(uint64_t));
  }
  for (int stream = 0; stream < entry.streams(); ++stream) {
    const uint64_t number = static_cast<uint64_t>(stream) * cut.chunks() + chunk;
    const onnxcomp_status status = decode_codes(index, number, geometry, error);
    if (status != ONNXCOMP_OK) return status;
    if (entry.kind == Kind::kPlanes)
      append_field({entry, dims, codes_.data(), cut.start(chunk), count}, entry.planes.widths[stream], numbers.data());
  }
  const Part part = {entry, dims, codes_.data(), cut.start(chunk), count};
  if (entry.kind == Kind::kPlanes) {
    write_planes(part, numbers.data(), target);
  } else if (entry.is_grid()) {
    if (entry.kind == Kind::kTrellis) restore(part, codes_.data());
    write_grid(part, table.data(), target);
  } else if (entry.kind == Kind::kCodebook) {
    if (!write_codebook(part, table.data(), target))
      return corrupt_chunk(index, chunk, "a code is outside the codebook", error);
  } else {
    write_integers(part, target);
  }
  return ONNXCOMP_OK;
}

// A payload, whose checksum has to hold, into codes_. `number` counts the chunks of all streams of the tensor.
onnxcomp_status Container::decode_codes(size_t index, uint64_t number, codec::Geometry geometry,
                                        onnxcomp_error* error) {
  const Chunk& chunk = directory_.chunks[directory_.entries[index].first_chunk + static_cast<size_t>(number)];
  Bytes payload = {nullptr, 0};
  const onnxcomp_status status = source_.get(chunk.offset, chunk.length, &payload_, &payload, budget_, error);
  if (status != ONNXCOMP_OK) return status;
  if (!holds(codec::crc32c(payload), chunk.checksum)) return corrupt_chunk(index, number, "its checksum differs", error);
  if (!codes_.resize(static_cast<uint64_t>(geometry.count()))) return fail_memory(error, budget_, "the codes of a chunk");
  const codec::LaneKernel* kernel = codec::find_kernel("auto");
  const codec::Status found = codec::decode(payload, geometry, *kernel, codes_.data());
  return found == codec::Status::kOk ? ONNXCOMP_OK : corrupt_chunk(index, number, codec::describe(found), error);
}

onnxcomp_status Container::corrupt(size_t index, const char* what, onnxcomp_error* error,
                                   const char* where) const noexcept {
  const Entry& entry = directory_.entries[index];
  const int length = entry.name_length < 100 ? static_cast<int>(entry.name_length) : 100;
  const auto* name = reinterpret_cast<const char*>(skeleton_.data()) + entry.name_start;
  return fail(error, ONNXCOMP_CORRUPT, "tensor %zu '%.*s'%s: %s", index, length, name, where, what);
}

onnxcomp_status Container::corrupt_chunk(size_t index, uint64_t number, const char* what,
                                         onnxcomp_error* error) const noexcept {
  const Entry& entry = directory_.entries[index];
  const uint64_t chunks = directory_.cut(entry).chunks(), codes = chunks * static_cast<uint64_t>(entry.streams());
  const bool in_table = number >= codes;  // the last stream
  char where[64];
  std::snprintf(where, sizeof where, ", stream %llu, chunk %llu",
                static_cast<unsigned long long>(in_table ? static_cast<uint64_t>(entry.streams()) : number / chunks),
                static_cast<unsigned long long>(in_table ? number - codes : number % chunks));
  return corrupt(index, what, error, where);
}

}  // namespace onnxcomp::decode
