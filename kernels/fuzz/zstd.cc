// Frames of zstd. An input is u24, the bytes that the frame has to hold, and a frame.

#include <memory>
#include <vector>

#include "fuzz/target.h"
#include "zstd/frame.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace onnxcomp;
  if (size < 3) return 0;
  const size_t unpacked = (data[0] | static_cast<size_t>(data[1]) << 8 | static_cast<size_t>(data[2]) << 16) % (1 << 20);
  const std::unique_ptr<zstd::Workspace> work(new zstd::Workspace);
  std::vector<uint8_t> first(unpacked, 0x55), second(unpacked, 0xaa);
  const zstd::Bytes frame = {data + 3, size - 3};
  const zstd::Status status = zstd::decode_frame(frame, first.data(), unpacked, work.get());
  fuzz::expect(zstd::decode_frame(frame, second.data(), unpacked, work.get()) == status, "the status changes");
  fuzz::expect(status != zstd::Status::kOk || first == second, "bytes are left that the frame does not give");
  return 0;
}
