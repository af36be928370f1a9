#pragma once

// An open container: docs/container.md without any Python.

#include "decode/directory.h"
#include "decode/source.h"

namespace onnxcomp::decode {

class Container {
 public:
  explicit Container(uint64_t max_bytes) noexcept
      : budget_{max_bytes}, directory_(&budget_), skeleton_(&budget_), payload_(&budget_), codes_(&budget_) {}

  Source& source() noexcept { return source_; }
  const Directory& directory() const noexcept { return directory_; }
  const Array<uint8_t>& skeleton() const noexcept { return skeleton_; }

  // Reads and checks all but the payloads.
  onnxcomp_status open(onnxcomp_error* error) noexcept;
  onnxcomp_status set_base(Container* base, onnxcomp_error* error) noexcept;

  // Decodes a tensor into entry.size bytes and compares its hash. May throw std::bad_alloc.
  onnxcomp_status decode(size_t index, uint8_t* out, onnxcomp_error* error);

  // `gap` bytes of the skeleton, or of zeros, and the tensor, for each; then the rest of the skeleton.
  onnxcomp_status write(onnxcomp_write write, void* user, onnxcomp_error* error);

 private:
  onnxcomp_status read_ends(uint32_t* features, uint64_t* offset, uint64_t* length, uint64_t* hashes,
                            onnxcomp_error* error) noexcept;
  onnxcomp_status unpack_skeleton(uint64_t hash, onnxcomp_error* error) noexcept;
  onnxcomp_status decode_same(const Entry& entry, uint8_t* out, onnxcomp_error* error);
  onnxcomp_status decode_table(size_t index, Array<uint8_t>* table, onnxcomp_error* error);
  onnxcomp_status decode_chunk(size_t index, uint64_t chunk, const Array<uint8_t>& table, uint8_t* out,
                               onnxcomp_error* error);
  onnxcomp_status decode_codes(size_t index, uint64_t number, codec::Geometry geometry, onnxcomp_error* error);
  onnxcomp_status corrupt(size_t index, const char* what, onnxcomp_error* error,
                          const char* where = "") const noexcept;
  onnxcomp_status corrupt_chunk(size_t index, uint64_t number, const char* what, onnxcomp_error* error) const noexcept;

  Budget budget_;
  Source source_;
  Directory directory_;
  uint64_t identity_ = 0;  // hash of the directory
  Array<uint8_t> skeleton_;
  Array<uint8_t> payload_;
  Array<int32_t> codes_;
  Container* base_ = nullptr;
};

}  // namespace onnxcomp::decode
