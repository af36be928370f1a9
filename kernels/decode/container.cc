#include "decode/container.h"

#include "codec/xxh3.h"
#include "decode/checksum.h"
#include "zstd/frame.h"

namespace onnxcomp::decode {
namespace {

constexpr uint8_t kMagic[] = {0x89, 'O', 'X', 'C', '\r', '\n', 0x1a, '\n'};
constexpr uint64_t kVersion = 1;
constexpr uint64_t kFooterBytes = 40;

uint64_t little_endian(const uint8_t* at, int bytes) noexcept {
  uint64_t value = 0;
  for (int i = 0; i < bytes; ++i) value |= static_cast<uint64_t>(at[i]) << (8 * i);
  return value;
}

bool is_magic(const uint8_t* bytes, bool backwards) noexcept {
  for (size_t i = 0; i < sizeof kMagic; ++i) {
    if (bytes[i] != kMagic[backwards ? sizeof kMagic - 1 - i : i]) return false;
  }
  return true;
}

}  // namespace

onnxcomp_status Container::open(onnxcomp_error* error) noexcept {
  uint32_t features = 0;
  uint64_t offset = 0, length = 0, hashes[2] = {};
  onnxcomp_status status = read_ends(&features, &offset, &length, hashes, error);
  if (status != ONNXCOMP_OK) return status;
  {
    Array<uint8_t> buffer(&budget_);
    Bytes bytes = {nullptr, 0};
    status = source_.get(offset, length, &buffer, &bytes, budget_, error);
    if (status != ONNXCOMP_OK) return status;
    if (!holds(codec::xxh3_64(bytes), hashes[0])) return fail(error, ONNXCOMP_CORRUPT, "the directory has another hash");
    status = directory_.read(bytes, features, budget_, error);
    if (status != ONNXCOMP_OK) return status;
  }
  identity_ = hashes[0];
  if (directory_.end != offset)
    return fail(error, ONNXCOMP_CORRUPT, "the payloads are not as long as the directory says");
  return unpack_skeleton(hashes[1], error);
}

// Header and footer: features, place of the directory, its hash and that of the start.
onnxcomp_status Container::read_ends(uint32_t* features, uint64_t* offset, uint64_t* length, uint64_t* hashes,
                                     onnxcomp_error* error) noexcept {
  Array<uint8_t> buffer(&budget_);
  Bytes bytes = {nullptr, 0};
  const uint64_t size = source_.size;
  onnxcomp_status status = source_.get(0, size < kHeaderBytes ? size : kHeaderBytes, &buffer, &bytes, budget_, error);
  if (status != ONNXCOMP_OK) return status;
  if (bytes.size < sizeof kMagic || !is_magic(bytes.data, false))
    return fail(error, ONNXCOMP_NOT_A_CONTAINER, "this is no .oxc container");
  if (size < kHeaderBytes + kFooterBytes) return fail(error, ONNXCOMP_CORRUPT, "the container is cut short");
  const uint64_t version = little_endian(bytes.data + 8, 2);
  if (version != kVersion) {
    return fail(error, ONNXCOMP_UNSUPPORTED, "the container has version %llu, this library reads %llu",
                static_cast<unsigned long long>(version), static_cast<unsigned long long>(kVersion));
  }
  *features = static_cast<uint32_t>(little_endian(bytes.data + 12, 4));
  if (little_endian(bytes.data + 10, 2) != 0 || (*features & ~kKnownFeatures) != 0)
    return fail(error, ONNXCOMP_UNSUPPORTED, "the container has features (%x) that this library lacks", *features);

  status = source_.get(size - kFooterBytes, kFooterBytes, &buffer, &bytes, budget_, error);
  if (status != ONNXCOMP_OK) return status;
  *offset = little_endian(bytes.data, 8);
  *length = little_endian(bytes.data + 8, 8);
  hashes[0] = little_endian(bytes.data + 16, 8);
  hashes[1] = little_endian(bytes.data + 24, 8);
  const uint64_t before = size - kFooterBytes;
  if (!is_magic(bytes.data + 32, true) || *offset > before || *length != before - *offset)
    return fail(error, ONNXCOMP_CORRUPT, "the end of the container is missing or damaged");
  return ONNXCOMP_OK;
}

onnxcomp_status Container::unpack_skeleton(uint64_t hash, onnxcomp_error* error) noexcept {
  Array<uint8_t> buffer(&budget_);
  Bytes start = {nullptr, 0};
  const uint64_t length = kHeaderBytes + directory_.skeleton_packed;
  onnxcomp_status status = source_.get(0, length, &buffer, &start, budget_, error);
  if (status != ONNXCOMP_OK) return status;
  if (!holds(codec::xxh3_64(start), hash)) return fail(error, ONNXCOMP_CORRUPT, "header or skeleton have another hash");
  // Room for one byte more, so that there is an address when it is empty.
  if (!skeleton_.resize(directory_.skeleton_size + 1)) return fail_memory(error, budget_, "the skeleton");
  skeleton_.resize(directory_.skeleton_size);
  Array<zstd::Workspace> work(&budget_);
  if (!work.resize(1)) return fail_memory(error, budget_, "unpacking the skeleton");
  const Bytes frame = {start.data + kHeaderBytes, start.size - kHeaderBytes};
  const zstd::Status found = zstd::decode_frame(frame, skeleton_.data(), skeleton_.size(), work.data());
  if (found == zstd::Status::kOk) return ONNXCOMP_OK;
  return fail(error, ONNXCOMP_CORRUPT, "the frame of the skeleton: %s", zstd::describe(found));
}

onnxcomp_status Container::set_base(Container* base, onnxcomp_error* error) noexcept {
  if (!directory_.needs_base) return fail(error, ONNXCOMP_BAD_ARGUMENT, "the container is no delta package");
  if (base->directory_.needs_base) return fail(error, ONNXCOMP_BAD_ARGUMENT, "the base is a delta package itself");
  if (!holds(base->identity_, directory_.base))
    return fail(error, ONNXCOMP_BAD_ARGUMENT, "the delta package was not made from this base");
  base_ = base;
  return ONNXCOMP_OK;
}

onnxcomp_status Container::write(onnxcomp_write write, void* user, onnxcomp_error* error) {
  Array<uint8_t> values(&budget_);
  const auto pass_on = [&](const uint8_t* bytes, size_t size) {
    return size == 0 || write(user, bytes, size) == 0;
  };
  const auto stopped = [&] { return fail(error, ONNXCOMP_CANNOT_WRITE, "the callback could not write"); };
  constexpr uint8_t kZeros[4096] = {};
  size_t at = 0;
  for (size_t index = 0; index < directory_.entries.size(); ++index) {
    const Entry& entry = directory_.entries[index];
    if (directory_.external) {
      for (uint64_t left = entry.gap; left > 0;) {
        const size_t some = left < sizeof kZeros ? static_cast<size_t>(left) : sizeof kZeros;
        if (!pass_on(kZeros, some)) return stopped();
        left -= some;
      }
    } else {
      if (!pass_on(skeleton_.data() + at, static_cast<size_t>(entry.gap))) return stopped();
      at += static_cast<size_t>(entry.gap);
    }
    if (!values.resize(entry.size)) return fail_memory(error, budget_, "a tensor");
    const onnxcomp_status status = decode(index, values.data(), error);
    if (status != ONNXCOMP_OK) return status;
    if (!pass_on(values.data(), values.size())) return stopped();
  }
  if (directory_.external) return ONNXCOMP_OK;
  return pass_on(skeleton_.data() + at, skeleton_.size() - at) ? ONNXCOMP_OK : stopped();
}

}  // namespace onnxcomp::decode
