// Payloads of codes, as a hostile container may hold them. Every instruction set gives the same codes, or none.
//
// An input is u8 rows, u16 columns, u8 kernel, and a payload.

#include <cstring>
#include <vector>

#include "codec/dispatch.h"
#include "codec/payload.h"
#include "codec/planes.h"
#include "fuzz/target.h"

namespace onnxcomp {
namespace {

using codec::Bytes;
using codec::Geometry;
using codec::LaneKernel;
using codec::Status;

constexpr int64_t kMostCodes = int64_t{1} << 12;  // so that inputs take milliseconds

struct Codes {
  Status status;
  std::vector<int32_t> values;
};

Codes decode(Bytes payload, Geometry geometry, const LaneKernel& kernel) {
  Codes codes = {Status::kOk, std::vector<int32_t>(geometry.valid() ? static_cast<size_t>(geometry.count()) : 0)};
  codes.status = codec::decode(payload, geometry, kernel, codes.values.data());
  return codes;
}

// Products of scales and codes, and numbers whose bits are codes, follow from the codes.
void check_uses(Bytes payload, Geometry geometry, const LaneKernel& kernel, const Codes& expected) {
  const size_t count = expected.values.size();
  const auto rows = static_cast<size_t>(geometry.rows);
  std::vector<float> scales(rows), products(count);
  for (size_t row = 0; row < rows; ++row) scales[row] = 0.37f + static_cast<float>(row % 7);
  const Status scaled = codec::decode_scaled(payload, geometry, kernel, scales.data(), geometry.rows, products.data());
  fuzz::expect(scaled == expected.status, "decode_scaled has another status");
  const uint8_t width = 8;
  std::vector<uint8_t> numbers(count);
  int field = 0;
  const Status planes = codec::decode_planes({&payload, &width, 1, true}, geometry, kernel, numbers.data(), &field);
  fuzz::expect(planes == expected.status, "decode_planes has another status");
  if (expected.status != Status::kOk) return;
  for (size_t i = 0; i < count; ++i) {
    const auto code = static_cast<uint32_t>(expected.values[i]);
    const float product = static_cast<float>(expected.values[i]) * scales[i / (count / rows)];
    fuzz::expect(std::memcmp(&product, &products[i], sizeof product) == 0, "decode_scaled has another product");
    fuzz::expect(numbers[i] == ((code >> 1 & 127) | (code & 1) << 7), "decode_planes has another number");
  }
}

}  // namespace
}  // namespace onnxcomp

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace onnxcomp;
  if (size < 4) return 0;
  const Geometry geometry = {data[0], data[1] | data[2] << 8, data[3]};
  if (geometry.valid() && geometry.count() > kMostCodes) return 0;
  const Bytes payload = {data + 4, size - 4};
  const std::vector<const LaneKernel*>& kernels = codec::available_kernels();
  const Codes expected = decode(payload, geometry, *kernels.back());
  for (const LaneKernel* kernel : kernels) {
    if (kernel == kernels.back()) continue;
    const Codes codes = decode(payload, geometry, *kernel);
    fuzz::expect(codes.status == expected.status, "instruction sets differ in the status");
    if (codes.status == Status::kOk) fuzz::expect(codes.values == expected.values, "instruction sets differ in codes");
  }
  check_uses(payload, geometry, *kernels[size % kernels.size()], expected);
  return 0;
}
