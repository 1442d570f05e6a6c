/* The nearest code of each vector of a file:
 *
 *     nearest_code DIM CODEBOOK VECTORS INDICES
 *
 * CODEBOOK and VECTORS hold float32, row after row; INDICES is written as int64. NumPy's `tofile`
 * and `fromfile` write and read such files. */
#include <stdio.h>
#include <stdlib.h>
#include <vqvae2_fast.h>

static FILE* opened(const char* path, const char* mode) {
  FILE* file = fopen(path, mode);
  if (!file) {
    perror(path);
    exit(1);
  }
  return file;
}

static void* memory_of(size_t bytes) {
  void* memory = malloc(bytes ? bytes : 1);
  if (!memory) {
    fprintf(stderr, "there is no memory for %zu bytes\n", bytes);
    exit(1);
  }
  return memory;
}

static float* read_rows(const char* path, int64_t dim, int64_t* num_rows) {
  const size_t row_bytes = (size_t)dim * sizeof(float);
  FILE* file = opened(path, "rb");
  fseek(file, 0, SEEK_END);
  *num_rows = (int64_t)((size_t)ftell(file) / row_bytes);
  rewind(file);
  float* rows = memory_of((size_t)*num_rows * row_bytes);
  if (fread(rows, row_bytes, (size_t)*num_rows, file) != (size_t)*num_rows) {
    perror(path);
    exit(1);
  }
  fclose(file);
  return rows;
}

int main(int argc, char** argv) {
  const int64_t dim = argc == 5 ? atoll(argv[1]) : 0;
  if (dim < 1) {
    fprintf(stderr, "usage: nearest_code DIM CODEBOOK VECTORS INDICES\n");
    return 2;
  }
  int64_t num_codes, num_vectors;
  float* codebook = read_rows(argv[2], dim, &num_codes);
  float* z = read_rows(argv[3], dim, &num_vectors);
  int64_t* indices = memory_of((size_t)num_vectors * sizeof(int64_t));
  if (vq2_nearest_code(z, num_vectors, codebook, num_codes, dim, indices, NULL) != VQ2_OK) {
    fprintf(stderr, "nearest_code: %s\n", vq2_last_error());
    return 1;
  }
  FILE* file = opened(argv[4], "wb");
  const size_t written = fwrite(indices, sizeof(int64_t), (size_t)num_vectors, file);
  if (fclose(file) != 0 || written != (size_t)num_vectors) {
    perror(argv[4]);
    return 1;
  }
  printf("%lld vectors, %lld codes, SIMD level %s\n", (long long)num_vectors, (long long)num_codes,
         vq2_simd_level());
  free(indices);
  free(z);
  free(codebook);
  return 0;
}
