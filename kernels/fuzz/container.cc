// Whole containers through the C door. Checksums all hold in this build, so that inputs get behind them.
//
// An input is u16, the length of a base, the base, and a container.

#include <cstring>
#include <memory>
#include <vector>

#include "decode/onnxcomp_decode.h"
#include "fuzz/target.h"

namespace {

constexpr size_t kMaxBytes = size_t{1} << 24;
constexpr uint64_t kLargestTensor = uint64_t{1} << 20;  // so that inputs take milliseconds
constexpr size_t kLargestFile = size_t{1} << 22;

struct Bytes {
  const uint8_t* data;
  size_t size;
};

using onnxcomp::fuzz::expect;

struct Close {
  void operator()(onnxcomp_container* container) const { onnxcomp_close(container); }
};
using Container = std::unique_ptr<onnxcomp_container, Close>;

int read(void* user, uint64_t offset, void* buffer, size_t length) {
  const auto* bytes = static_cast<const Bytes*>(user);
  expect(offset <= bytes->size && length <= bytes->size - offset, "a read outside the container");
  std::memcpy(buffer, bytes->data + offset, length);
  return 0;
}

int write(void* user, const void* bytes, size_t length) {
  auto* written = static_cast<std::vector<uint8_t>*>(user);
  if (length > kLargestFile - written->size()) return 1;
  const auto* first = static_cast<const uint8_t*>(bytes);
  written->insert(written->end(), first, first + length);
  return 0;
}

void check(onnxcomp_status status, const onnxcomp_error& error) {
  if (status == ONNXCOMP_OK) return;
  expect(error.status == status && error.message[0] != 0, "an error without a message");
  expect(std::memchr(error.message, 0, sizeof error.message) != nullptr, "a message without an end");
}

Container open(Bytes* bytes, bool from_memory) {
  onnxcomp_container* container = nullptr;
  onnxcomp_error error = {ONNXCOMP_OK, ""};
  const onnxcomp_status status =
      from_memory ? onnxcomp_open_memory(bytes->data, bytes->size, kMaxBytes, &container, &error)
                  : onnxcomp_open_reader(read, bytes, bytes->size, kMaxBytes, &container, &error);
  check(status, error);
  expect((container != nullptr) == (status == ONNXCOMP_OK), "a container in spite of an error");
  return Container(container);
}

uint32_t sum(const void* bytes, size_t size) {
  uint32_t total = 0;
  for (size_t i = 0; i < size; ++i) total += static_cast<const uint8_t*>(bytes)[i];
  return total;
}

// What the container says of a tensor, and its values.
void use_tensor(onnxcomp_container* container, size_t index) {
  onnxcomp_error error = {ONNXCOMP_OK, ""};
  onnxcomp_tensor tensor;
  expect(onnxcomp_tensor_info(container, index, &tensor, &error) == ONNXCOMP_OK, "no information");
  onnxcomp::fuzz::keep(sum(tensor.name, tensor.name_length));
  onnxcomp::fuzz::keep(sum(tensor.dims, static_cast<size_t>(tensor.rank) * sizeof *tensor.dims));
  if (tensor.size > kLargestTensor) return;
  // One byte in, so that nothing is aligned; exactly as large, so that a byte too much is found.
  std::vector<uint8_t> values(static_cast<size_t>(tensor.size) + 1);
  check(onnxcomp_decode_tensor(container, index, values.data() + 1, values.size() - 1, &error), error);
}

void use(onnxcomp_container* container) {
  onnxcomp_error error = {ONNXCOMP_OK, ""};
  const void* skeleton = nullptr;
  size_t size = 0;
  expect(onnxcomp_skeleton(container, &skeleton, &size, &error) == ONNXCOMP_OK, "no skeleton");
  onnxcomp::fuzz::keep(sum(skeleton, size));
  for (size_t i = 0; i < onnxcomp_tensor_count(container) && i < 64; ++i) use_tensor(container, i);
  std::vector<uint8_t> file;
  check(onnxcomp_write_model(container, write, &file, &error), error);
  file.clear();
  const onnxcomp_status status = onnxcomp_write_data_file(container, write, &file, &error);
  check(status, error);
  expect(onnxcomp_has_data_file(container) == 1 || status == ONNXCOMP_BAD_ARGUMENT, "a data file that is none");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const size_t length = data[0] | static_cast<size_t>(data[1]) << 8;
  if (length > size - 2) return 0;
  Bytes older = {data + 2, length}, bytes = {data + 2 + length, size - 2 - length};
  const Container base = length > 0 ? open(&older, true) : nullptr;
  const Container container = open(&bytes, size % 2 == 0);
  if (container == nullptr) return 0;
  if (base != nullptr) {
    onnxcomp_error error = {ONNXCOMP_OK, ""};
    check(onnxcomp_set_base(container.get(), base.get(), &error), error);
  }
  use(container.get());
  return 0;
}
