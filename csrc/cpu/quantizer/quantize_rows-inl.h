// What comes before and after the search of a block of rows: rows as float32, and the results that
// follow from the indices. Include after a simd/ header.
#pragma once

#include "exact_distance-inl.h"
#include "nearest_code.h"

namespace vqvae2_fast::cpu {
namespace {

// Pointers to `count` rows as contiguous float32, copied where they are not.
inline void load_rows(const Rows& z, int64_t first, int64_t count, int64_t dim, float* copies,
                      const float** rows) {
  if (z.dtype == Dtype::kFloat32 && z.stride_col == 1) {
    const float* data = static_cast<const float*>(z.data);
    for (int64_t i = 0; i < count; ++i) rows[i] = data + (first + i) * z.stride_row;
    return;
  }
  for (int64_t i = 0; i < count; ++i) rows[i] = copies + i * dim;
  if (z.stride_row < z.stride_col && z.dtype == Dtype::kFloat32) {
    // Neighbouring rows lie side by side, so each cache line is read once.
    const float* data = static_cast<const float*>(z.data) + first * z.stride_row;
    for (int64_t d = 0; d < dim; ++d) {
      for (int64_t i = 0; i < count; ++i) {
        copies[i * dim + d] = data[i * z.stride_row + d * z.stride_col];
      }
    }
    return;
  }
  for (int64_t i = 0; i < count; ++i) row_as_float(z, first + i, dim, copies + i * dim);
}

inline double squared_error(const float* z, const float* e, int64_t dim) {
  // A sum of at most eight float32 squares, which is then added in float64.
  constexpr int64_t kPart = 8 * Vec::kLanes;
  double total = 0;
  for (int64_t d = 0; d < dim; d += kPart) {
    total += static_cast<double>(quick_sqdist(z + d, e + d, dim - d < kPart ? dim - d : kPart));
  }
  return total;
}

// Whether rows of `dim` floats at `first` are whole vectors, each at a multiple of its size.
inline bool in_whole_vectors(const void* first, int64_t dim) {
  return dim % Vec::kLanes == 0 && reinterpret_cast<uintptr_t>(first) % sizeof(Vec) == 0;
}

inline void stream_code(const float* code, int64_t dim, void* z_q, int64_t row) {
  float* out = static_cast<float*>(z_q) + row * dim;
  for (int64_t d = 0; d < dim; d += Vec::kLanes) Vec::load(code + d).stream(out + d);
}

inline void finish_rows(const NearestCodeProblem& problem, const float* const* rows, int64_t first,
                        int64_t count, int64_t block) {
  const float* codes = problem.codebook->codes;
  const int64_t dim = problem.codebook->dim;
  const int64_t* index = problem.indices + first;
  if (problem.sqdist) {
    constexpr int kGroup = 8;
    for (int64_t start = 0; start < count; start += kGroup) {
      const float *z[kGroup], *e[kGroup];
      for (int i = 0; i < kGroup; ++i) {
        // The last group repeats its last row.
        const int64_t row = start + i < count ? start + i : count - 1;
        z[i] = rows[row];
        e[i] = codes + index[row] * dim;
      }
      double sums[kGroup];
      exact_sqdists<kGroup>(z, e, dim, sums);
      for (int i = 0; i < kGroup && start + i < count; ++i) {
        problem.sqdist[first + start + i] = static_cast<float>(sums[i]);
      }
    }
  }
  if (problem.z_q) {
    const Dtype dtype = problem.z.dtype;
    const bool stream =
        problem.z_q_past_caches && dtype == Dtype::kFloat32 && in_whole_vectors(problem.z_q, dim);
    double error = 0;
    for (int64_t i = 0; i < count; ++i) {
      const float* code = codes + index[i] * dim;
      if (stream) {
        stream_code(code, dim, problem.z_q, first + i);
      } else {
        store_numbers(code, dim, dtype, problem.z_q, (first + i) * dim);
      }
      error += squared_error(rows[i], code, dim);
    }
    if (stream) Vec::finish_streaming();
    if (!isfinite(error)) {  // float32 may not hold the squares
      error = 0;
      for (int64_t i = 0; i < count; ++i) {
        error += exact_sqdist(rows[i], codes + index[i] * dim, dim);
      }
    }
    problem.block_errors[block] = error;
  }
}

// Rows begin..end of a gradient, rounded once to z's dtype.
inline void quantize_backward(const QuantizeGradient& problem, int64_t begin, int64_t end) {
  constexpr int64_t kPart = 256;
  const int64_t dim = problem.dim;
  const float scale = problem.scale;
  const Dtype dtype = problem.z.dtype;
  const bool stream =
      problem.past_caches && dtype == Dtype::kFloat32 && in_whole_vectors(problem.dz, dim);
  float copies[3][kPart], result[kPart];
  for (int64_t n = begin; n < end; ++n) {
    const int64_t code_row =
        problem.code_rows ? problem.code_rows[n * problem.code_rows_stride] : n;
    for (int64_t first = 0; first < dim; first += kPart) {
      const int64_t count = dim - first < kPart ? dim - first : kPart;
      const float* const incoming = part_as_float(problem.dz_q, n, first, count, copies[0]);
      const float* const row = part_as_float(problem.z, n, first, count, copies[1]);
      const float* const code = part_as_float(problem.code, code_row, first, count, copies[2]);
      if (stream) {
        float* const out = static_cast<float*>(problem.dz) + n * dim + first;
        for (int64_t d = 0; d < count; d += Vec::kLanes) {
          const Vec pull = Vec::broadcast(scale) * (Vec::load(row + d) - Vec::load(code + d));
          (Vec::load(incoming + d) + pull).stream(out + d);
        }
        continue;
      }
      float* const out =
          dtype == Dtype::kFloat32 ? static_cast<float*>(problem.dz) + n * dim + first : result;
      for (int64_t d = 0; d < count; ++d) out[d] = incoming[d] + scale * (row[d] - code[d]);
      if (out == result) store_numbers(result, count, dtype, problem.dz, n * dim + first);
    }
  }
  if (stream) Vec::finish_streaming();
}

}  // namespace
}  // namespace vqvae2_fast::cpu
