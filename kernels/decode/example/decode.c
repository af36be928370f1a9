/* Turns model.oxc into model.onnx: decode model.oxc model.onnx [base.oxc] */
#include <stdio.h>

#include "onnxcomp_decode.h"

static int write_bytes(void *file, const void *bytes, size_t length) {
  return fwrite(bytes, 1, length, (FILE *)file) != length;
}

typedef onnxcomp_status (*part)(onnxcomp_container *, onnxcomp_write, void *, onnxcomp_error *);

static onnxcomp_status save(onnxcomp_container *container, part write, const char *path, onnxcomp_error *error) {
  onnxcomp_status status;
  FILE *file = fopen(path, "wb");
  error->status = ONNXCOMP_CANNOT_WRITE;
  snprintf(error->message, sizeof error->message, "%.200s cannot be written", path);
  if (file == NULL) return ONNXCOMP_CANNOT_WRITE;
  status = write(container, write_bytes, file, error);
  if (fclose(file) != 0 && status == ONNXCOMP_OK) status = ONNXCOMP_CANNOT_WRITE;
  if (status != ONNXCOMP_OK) remove(path);
  return status;
}

int main(int count, char **arguments) {
  const size_t max_bytes = (size_t)1 << 30;
  onnxcomp_container *container = NULL, *base = NULL;
  onnxcomp_tensor tensor;
  onnxcomp_error error;
  char data_path[1024];
  size_t i;
  if (count < 3) return fprintf(stderr, "usage: decode model.oxc model.onnx [base.oxc]\n"), 2;
  if (onnxcomp_open_file(arguments[1], max_bytes, &container, &error) != ONNXCOMP_OK) goto failed;
  if (count > 3 && (onnxcomp_open_file(arguments[3], max_bytes, &base, &error) != ONNXCOMP_OK ||
                    onnxcomp_set_base(container, base, &error) != ONNXCOMP_OK))
    goto failed;
  for (i = 0; i < onnxcomp_tensor_count(container); ++i) {
    if (onnxcomp_tensor_info(container, i, &tensor, &error) != ONNXCOMP_OK) goto failed;
    printf("%.*s: %llu bytes from %llu\n", (int)tensor.name_length, tensor.name,
           (unsigned long long)tensor.size, (unsigned long long)tensor.packed);
  }
  if (save(container, onnxcomp_write_model, arguments[2], &error) != ONNXCOMP_OK) goto failed;
  if (onnxcomp_has_data_file(container)) { /* under the name that the model has for it, or rename it */
    snprintf(data_path, sizeof data_path, "%s.data", arguments[2]);
    if (save(container, onnxcomp_write_data_file, data_path, &error) != ONNXCOMP_OK) goto failed;
  }
  onnxcomp_close(container);
  onnxcomp_close(base);
  return 0;
failed:
  fprintf(stderr, "decode: %s\n", error.message);
  onnxcomp_close(container);
  onnxcomp_close(base);
  return 1;
}
