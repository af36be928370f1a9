#include "restoring/restoring.h"

#include <cstring>
#include <memory>
#include <utility>

#if !defined(_WIN32)
#include <cerrno>
#include <unistd.h>
#endif

#include "codec/crc32c.h"
#include "codec/payload.h"
#include "codec/xxh3.h"
#include "trellis/trellis.h"

namespace onnxcomp::restoring {
namespace {

// Memory of a thread that does chunk after chunk, taken once: the system would clear it every time.
class Room {
 public:
  uint8_t* of(size_t size) {
    if (size > size_) {
      bytes_.reset();
      size_ = 0;
      bytes_.reset(new uint8_t[size + size / 4]);
      size_ = size + size / 4;
    }
    return bytes_.get();
  }

 private:
  std::unique_ptr<uint8_t[]> bytes_;
  size_t size_ = 0;
};

struct Rooms {
  Room payloads;
  Room values;
};

bool read(const Payload& payload, uint8_t* bytes) noexcept {
#if defined(_WIN32)
  static_cast<void>(payload);
  static_cast<void>(bytes);
  return false;
#else
  for (size_t done = 0; done < payload.length;) {
    const ssize_t count =
        pread(payload.file, bytes + done, payload.length - done, static_cast<off_t>(payload.offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    done += static_cast<size_t>(count);
  }
  return true;
#endif
}

bool decode_scaled(const Chunk& chunk, codec::Bytes payload, const codec::LaneKernel& kernel, float* values) {
  const Scaled& scaled = chunk.scaled;
  if (scaled.length == 0)
    return codec::decode_scaled(payload, chunk.geometry, kernel, scaled.scales, scaled.count, values) ==
           codec::Status::kOk;
  auto* const codes = reinterpret_cast<int32_t*>(values);
  if (codec::decode(payload, chunk.geometry, kernel, codes) != codec::Status::kOk) return false;
  const int64_t count = chunk.geometry.count(), block = scaled.length * scaled.inner;
  trellis::restore(codes, count / block, scaled.length, scaled.inner);
  const int64_t run = count / scaled.count;
  for (int64_t i = 0; i < scaled.count; ++i) kernel.scale_in_place(codes + i * run, run, scaled.scales[i]);
  return true;
}

bool decode(const Chunk& chunk, const codec::Bytes* payloads, const codec::LaneKernel& kernel, void* values) {
  if (chunk.scaled.scales != nullptr) return decode_scaled(chunk, payloads[0], kernel, static_cast<float*>(values));
  int defective = 0;
  const codec::Planes planes = {payloads, chunk.widths.data(), static_cast<int>(chunk.widths.size()), chunk.rotated,
                                chunk.widening};
  return codec::decode_planes(planes, chunk.geometry, kernel, values, &defective) == codec::Status::kOk;
}

bool restore(const Chunk& chunk, const codec::LaneKernel& kernel, Rooms* rooms) {
  size_t total = 0;
  for (const Payload& payload : chunk.payloads) total += payload.length;
  uint8_t* bytes = rooms->payloads.of(total);
  std::vector<codec::Bytes> payloads;
  for (const Payload& payload : chunk.payloads) {
    payloads.push_back({bytes, payload.length});
    if (!read(payload, bytes) || codec::crc32c(payloads.back()) != payload.checksum) return false;
    bytes += payload.length;
  }
  // A number has eight bytes at most.
  if (reinterpret_cast<uintptr_t>(chunk.values) % 8 == 0) return decode(chunk, payloads.data(), kernel, chunk.values);
  uint8_t* const values = rooms->values.of(chunk.size);
  if (!decode(chunk, payloads.data(), kernel, values)) return false;
  std::memcpy(chunk.values, values, chunk.size);
  return true;
}

}  // namespace

Restoring::Restoring(std::vector<Chunk> chunks, const std::vector<Tensor>& tensors)
    : kernel_(*codec::find_kernel("auto")), chunks_(std::move(chunks)), left_(tensors.size()) {
  for (size_t i = 0; i < tensors.size(); ++i) left_[i].tensor = tensors[i];
  for (const Chunk& chunk : chunks_) ++left_[chunk.tensor].chunks;
}

void Restoring::stop(std::atomic<int64_t>* defective, size_t index) noexcept {
  next_ = chunks_.size();
  *defective = static_cast<int64_t>(index);
}

void Restoring::run() noexcept {
  Rooms rooms;
  for (size_t index = 0; (index = next_++) < chunks_.size();) {
    const Chunk& chunk = chunks_[index];
    bool done = false;
    try {
      done = restore(chunk, kernel_, &rooms);
    } catch (...) {  // no memory
    }
    if (!done) return stop(&defective_chunk_, index);
    Left& left = left_[chunk.tensor];
    if (--left.chunks == 0 && codec::xxh3_64(left.tensor.values) != left.tensor.hash)
      return stop(&defective_tensor_, chunk.tensor);
  }
}

bool available() noexcept {
#if defined(_WIN32)
  return false;
#else
  return true;
#endif
}

}  // namespace onnxcomp::restoring
