#if !defined(_FILE_OFFSET_BITS)
#define _FILE_OFFSET_BITS 64  // files above 2 GB where long has 32 bits
#endif

#include "decode/source.h"

#if !defined(_WIN32)
#include <sys/types.h>
#endif

#include <cerrno>
#include <cstring>

namespace onnxcomp::decode {
namespace {

bool seek(std::FILE* file, uint64_t offset, int from) noexcept {
#if defined(_WIN32)
  return _fseeki64(file, static_cast<long long>(offset), from) == 0;
#else
  return fseeko(file, static_cast<off_t>(offset), from) == 0;
#endif
}

int64_t position(std::FILE* file) noexcept {
#if defined(_WIN32)
  return _ftelli64(file);
#else
  return static_cast<int64_t>(ftello(file));
#endif
}

}  // namespace

onnxcomp_status Source::open_file(const char* path, onnxcomp_error* error) noexcept {
  file = std::fopen(path, "rb");
  if (file == nullptr) return fail(error, ONNXCOMP_CANNOT_READ, "%.150s: %s", path, std::strerror(errno));
  const int64_t end = seek(file, 0, SEEK_END) ? position(file) : -1;
  if (end < 0) return fail(error, ONNXCOMP_CANNOT_READ, "%.150s: %s", path, std::strerror(errno));
  size = static_cast<uint64_t>(end);
  return ONNXCOMP_OK;
}

onnxcomp_status Source::get(uint64_t offset, uint64_t length, Array<uint8_t>* buffer, Bytes* bytes,
                            const Budget& budget, onnxcomp_error* error) const noexcept {
  if (offset > size || length > size - offset)
    return fail(error, ONNXCOMP_CORRUPT, "an offset is outside the container");
  const auto count = static_cast<size_t>(length);
  if (memory != nullptr) {
    *bytes = {memory + offset, count};
    return ONNXCOMP_OK;
  }
  if (!buffer->resize(length)) return fail_memory(error, budget, "a part of the container");
  *bytes = {buffer->data(), count};
  if (count == 0) return ONNXCOMP_OK;
  const bool done = file != nullptr
                        ? seek(file, offset, SEEK_SET) && std::fread(buffer->data(), 1, count, file) == count
                        : read(user, offset, buffer->data(), count) == 0;
  return done ? ONNXCOMP_OK : fail(error, ONNXCOMP_CANNOT_READ, "the container cannot be read");
}

}  // namespace onnxcomp::decode
