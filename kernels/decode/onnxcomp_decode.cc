#include "decode/onnxcomp_decode.h"

#include <new>

#include "decode/container.h"

struct onnxcomp_container : onnxcomp::decode::Container {
  using Container::Container;
};

namespace onnxcomp::decode {
namespace {

onnxcomp_status no_argument(onnxcomp_error* error) noexcept {
  return fail(error, ONNXCOMP_BAD_ARGUMENT, "an argument is NULL");
}

// `prepare` gives the new container its source.
template <class Prepare>
onnxcomp_status open(size_t max_bytes, onnxcomp_container** container, onnxcomp_error* error,
                     const Prepare& prepare) noexcept {
  if (container == nullptr) return no_argument(error);
  *container = nullptr;
  auto* made = new (std::nothrow) onnxcomp_container(max_bytes == 0 ? UINT64_MAX : max_bytes);
  if (made == nullptr) return fail(error, ONNXCOMP_OUT_OF_MEMORY, "there is no memory for a container");
  onnxcomp_status status = prepare(&made->source());
  if (status == ONNXCOMP_OK) status = made->open(error);
  if (status == ONNXCOMP_OK)
    *container = made;
  else
    delete made;
  return status;
}

// No exception crosses the door: the codec's own memory is all that may be missing.
template <class Work>
onnxcomp_status guarded(onnxcomp_error* error, const Work& work) noexcept {
  try {
    return work();
  } catch (...) {
    return fail(error, ONNXCOMP_OUT_OF_MEMORY, "there is no memory to decode a chunk");
  }
}

onnxcomp_status no_tensor(size_t index, size_t count, onnxcomp_error* error) noexcept {
  return fail(error, ONNXCOMP_BAD_ARGUMENT, "there is no tensor %zu: the container has %zu", index, count);
}

}  // namespace
}  // namespace onnxcomp::decode

using onnxcomp::decode::Entry;
using onnxcomp::decode::fail;
using onnxcomp::decode::guarded;
using onnxcomp::decode::no_argument;
using onnxcomp::decode::no_tensor;
using onnxcomp::decode::Source;

extern "C" {

onnxcomp_status onnxcomp_open_memory(const void* bytes, size_t size, size_t max_bytes,
                                     onnxcomp_container** container, onnxcomp_error* error) {
  return onnxcomp::decode::open(max_bytes, container, error, [&](Source* source) {
    if (bytes == nullptr) return no_argument(error);
    source->memory = static_cast<const uint8_t*>(bytes);
    source->size = size;
    return ONNXCOMP_OK;
  });
}

onnxcomp_status onnxcomp_open_file(const char* path, size_t max_bytes, onnxcomp_container** container,
                                   onnxcomp_error* error) {
  return onnxcomp::decode::open(max_bytes, container, error, [&](Source* source) {
    return path == nullptr ? no_argument(error) : source->open_file(path, error);
  });
}

onnxcomp_status onnxcomp_open_reader(onnxcomp_read read, void* user, uint64_t size, size_t max_bytes,
                                     onnxcomp_container** container, onnxcomp_error* error) {
  return onnxcomp::decode::open(max_bytes, container, error, [&](Source* source) {
    if (read == nullptr) return no_argument(error);
    source->read = read;
    source->user = user;
    source->size = size;
    return ONNXCOMP_OK;
  });
}

void onnxcomp_close(onnxcomp_container* container) { delete container; }

int onnxcomp_is_delta(const onnxcomp_container* container) {
  return container != nullptr && container->directory().needs_base ? 1 : 0;
}

onnxcomp_status onnxcomp_set_base(onnxcomp_container* container, onnxcomp_container* base, onnxcomp_error* error) {
  if (container == nullptr || base == nullptr) return no_argument(error);
  return container->set_base(base, error);
}

size_t onnxcomp_tensor_count(const onnxcomp_container* container) {
  return container == nullptr ? 0 : container->directory().entries.size();
}

onnxcomp_status onnxcomp_tensor_info(const onnxcomp_container* container, size_t index, onnxcomp_tensor* tensor,
                                     onnxcomp_error* error) {
  if (container == nullptr || tensor == nullptr) return no_argument(error);
  const size_t count = onnxcomp_tensor_count(container);
  if (index >= count) return no_tensor(index, count, error);
  const Entry& entry = container->directory().entries[index];
  tensor->name = reinterpret_cast<const char*>(container->skeleton().data()) + entry.name_start;
  tensor->name_length = entry.name_length;
  tensor->initializer = entry.initializer ? 1 : 0;
  tensor->data_type = entry.data_type;
  tensor->rank = entry.rank;
  tensor->dims = container->directory().dims.data() + entry.first_dim;
  tensor->size = entry.size;
  tensor->packed = entry.packed;
  return ONNXCOMP_OK;
}

onnxcomp_status onnxcomp_decode_tensor(onnxcomp_container* container, size_t index, void* values, size_t size,
                                       onnxcomp_error* error) {
  const size_t count = onnxcomp_tensor_count(container);
  if (container == nullptr || (values == nullptr && size > 0)) return no_argument(error);
  if (index >= count) return no_tensor(index, count, error);
  const Entry& entry = container->directory().entries[index];
  if (size < entry.size) {
    return fail(error, ONNXCOMP_BAD_ARGUMENT, "tensor %zu has %llu bytes, there is room for %zu", index,
                static_cast<unsigned long long>(entry.size), size);
  }
  return guarded(error, [&] { return container->decode(index, static_cast<uint8_t*>(values), error); });
}

onnxcomp_status onnxcomp_skeleton(const onnxcomp_container* container, const void** bytes, size_t* size,
                                  onnxcomp_error* error) {
  if (container == nullptr || bytes == nullptr || size == nullptr) return no_argument(error);
  *bytes = container->skeleton().data();
  *size = container->skeleton().size();
  return ONNXCOMP_OK;
}

int onnxcomp_has_data_file(const onnxcomp_container* container) {
  return container != nullptr && container->directory().external ? 1 : 0;
}

onnxcomp_status onnxcomp_write_model(onnxcomp_container* container, onnxcomp_write write, void* user,
                                     onnxcomp_error* error) {
  if (container == nullptr || write == nullptr) return no_argument(error);
  if (!container->directory().external) return guarded(error, [&] { return container->write(write, user, error); });
  const bool done = write(user, container->skeleton().data(), container->skeleton().size()) == 0;
  return done ? ONNXCOMP_OK : fail(error, ONNXCOMP_CANNOT_WRITE, "the callback could not write");
}

onnxcomp_status onnxcomp_write_data_file(onnxcomp_container* container, onnxcomp_write write, void* user,
                                         onnxcomp_error* error) {
  if (container == nullptr || write == nullptr) return no_argument(error);
  if (!container->directory().external)
    return fail(error, ONNXCOMP_BAD_ARGUMENT, "the values of this container are part of the model file");
  return guarded(error, [&] { return container->write(write, user, error); });
}

}  // extern "C"
