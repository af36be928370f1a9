#pragma once

// Chunks of many tensors from payloads in files to values in memory: read, checked, decoded and compared
// with the tensor's hash, in as many threads as come. Whatever is not in order is left to the caller, who
// does that chunk again in his own way and says what is wrong with it.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "codec/dispatch.h"
#include "codec/planes.h"

namespace onnxcomp::restoring {

struct Payload {
  int file;  // a descriptor
  uint64_t offset;
  size_t length;
  uint32_t checksum;
};

// float32 numbers, code * scale; of sequences, those of a trellis (docs/container.md).
struct Scaled {
  const float* scales = nullptr;  // null: the chunk has planes
  int64_t count = 0;              // 1, or one for each row of the chunk
  int64_t length = 0;             // of the sequences; 0: codes are integers
  int64_t inner = 0;              // sequences side by side
};

struct Chunk {
  std::vector<Payload> payloads;
  codec::Geometry geometry;
  std::vector<uint8_t> widths;  // of planes, one a payload
  bool rotated;
  codec::Widening widening;
  Scaled scaled;
  uint8_t* values;
  size_t size;  // bytes
  size_t tensor;
};

struct Tensor {
  codec::Bytes values;
  uint64_t hash;
};

class Restoring {
 public:
  Restoring(std::vector<Chunk> chunks, const std::vector<Tensor>& tensors);

  // Does one chunk after the other until none is left, beside other threads; none after a defect.
  void run() noexcept;

  // Once all threads are back: what is wrong, or -1; of chunks the first, of tensors one whose hash differs.
  int64_t defective_chunk() const noexcept { return defective_chunk_; }
  int64_t defective_tensor() const noexcept { return defective_tensor_; }

 private:
  struct Left {
    Tensor tensor;
    std::atomic<size_t> chunks{0};
  };

  void stop(std::atomic<int64_t>* defective, size_t index) noexcept;

  const codec::LaneKernel& kernel_;
  const std::vector<Chunk> chunks_;
  std::vector<Left> left_;
  std::atomic<size_t> next_{0};
  std::atomic<int64_t> defective_chunk_{-1};
  std::atomic<int64_t> defective_tensor_{-1};
};

// Whether files can be read here; elsewhere every chunk counts as defective.
bool available() noexcept;

}  // namespace onnxcomp::restoring
