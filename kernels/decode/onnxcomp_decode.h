/* Reads .oxc containers (docs/container.md) and gives back their tensors and models. C99, no dependencies
 * but the C++ runtime library.
 *
 * Every function returns a status and, where `error` is not NULL, says in it what is wrong. A container
 * is used by one thread at a time; several threads open it several times. */
#ifndef ONNXCOMP_DECODE_H
#define ONNXCOMP_DECODE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

typedef enum onnxcomp_status {
  ONNXCOMP_OK = 0,
  ONNXCOMP_BAD_ARGUMENT = 1,    /* NULL, an index or a size that does not fit */
  ONNXCOMP_CANNOT_READ = 2,     /* the file, or the caller's callback */
  ONNXCOMP_NOT_A_CONTAINER = 3,
  ONNXCOMP_UNSUPPORTED = 4,     /* another version or an unknown feature */
  ONNXCOMP_CORRUPT = 5,         /* damaged or malformed */
  ONNXCOMP_OVER_LIMIT = 6,      /* needs more than max_bytes */
  ONNXCOMP_OUT_OF_MEMORY = 7,
  ONNXCOMP_NEEDS_BASE = 8,      /* a delta package: see onnxcomp_set_base */
  ONNXCOMP_CANNOT_WRITE = 9     /* the caller's callback */
} onnxcomp_status;

typedef struct onnxcomp_error {
  onnxcomp_status status;
  char message[240]; /* ends with a zero byte */
} onnxcomp_error;

typedef struct onnxcomp_container onnxcomp_container;

/* Puts the `length` bytes at `offset` into `buffer`; returns 0 if it could. */
typedef int (*onnxcomp_read)(void *user, uint64_t offset, void *buffer, size_t length);

/* Takes the next `length` bytes of a file; returns 0 to go on. */
typedef int (*onnxcomp_write)(void *user, const void *bytes, size_t length);

/* Opens a container and checks header, footer, directory and skeleton.
 *
 * `max_bytes` caps what is allocated for this container at any time, but for the working memory of the
 * decoder of a chunk (under 8 MB); 0: no cap but what the format allows. The whole skeleton is held: the
 * graph without its weights. `*container` becomes NULL on an error. Memory has to stay as it is until onnxcomp_close, and `user` valid. */
onnxcomp_status onnxcomp_open_memory(const void *bytes, size_t size, size_t max_bytes,
                                     onnxcomp_container **container, onnxcomp_error *error);
onnxcomp_status onnxcomp_open_file(const char *path, size_t max_bytes, onnxcomp_container **container,
                                   onnxcomp_error *error);
onnxcomp_status onnxcomp_open_reader(onnxcomp_read read, void *user, uint64_t size, size_t max_bytes,
                                     onnxcomp_container **container, onnxcomp_error *error);
void onnxcomp_close(onnxcomp_container *container); /* NULL is fine */

/* Whether the container is a delta package, and the base that completes it: the container that it was
 * made from, which stays open as long as it is used. */
int onnxcomp_is_delta(const onnxcomp_container *container);
onnxcomp_status onnxcomp_set_base(onnxcomp_container *container, onnxcomp_container *base,
                                  onnxcomp_error *error);

typedef struct onnxcomp_tensor {
  const char *name; /* UTF-8, not terminated; valid until onnxcomp_close */
  size_t name_length;
  int initializer;  /* 1: of the outermost graph */
  int data_type;    /* TensorProto.DataType */
  int rank;
  const uint64_t *dims; /* [rank]; valid until onnxcomp_close */
  uint64_t size;        /* bytes of its values, as TensorProto.raw_data has them */
  uint64_t packed;      /* bytes of its payloads in the container */
} onnxcomp_tensor;

/* The tensors whose values are not in the skeleton, 0 to count - 1 in the order of their values. */
size_t onnxcomp_tensor_count(const onnxcomp_container *container);
onnxcomp_status onnxcomp_tensor_info(const onnxcomp_container *container, size_t index,
                                     onnxcomp_tensor *tensor, onnxcomp_error *error);

/* Decodes a tensor and compares it with its hash. `size` is at least the tensor's; `values` needs no
 * alignment. */
onnxcomp_status onnxcomp_decode_tensor(onnxcomp_container *container, size_t index, void *values,
                                       size_t size, onnxcomp_error *error);

/* The model file without the values of these tensors. Valid until onnxcomp_close. */
onnxcomp_status onnxcomp_skeleton(const onnxcomp_container *container, const void **bytes, size_t *size,
                                  onnxcomp_error *error);

/* Writes the model file, front to back; holds one tensor at a time. On an error what was written is no
 * model. */
onnxcomp_status onnxcomp_write_model(onnxcomp_container *container, onnxcomp_write write, void *user,
                                     onnxcomp_error *error);

/* Whether the values belong into a data file beside the model, and that file. The model names it in the
 * `location` of its external data. */
int onnxcomp_has_data_file(const onnxcomp_container *container);
onnxcomp_status onnxcomp_write_data_file(onnxcomp_container *container, onnxcomp_write write, void *user,
                                         onnxcomp_error *error);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
}
#endif

#endif
