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

inline void store_code(const float* code, int64_t dim, Dtype dtype, void* z_q, int64_t row) {
  if (dtype == Dtype::kFloat32) {
    float* out = static_cast<float*>(z_q) + row * dim;
    for (int64_t d = 0; d < dim; ++d) out[d] = code[d];
    return;
  }
  uint16_t* out = static_cast<uint16_t*>(z_q) + row * dim;
  if (dtype == Dtype::kBFloat16) {
    for (int64_t d = 0; d < dim; ++d) out[d] = bfloat16_from_float(code[d]);
  } else {
    for (int64_t d = 0; d < dim; ++d) out[d] = half_from_float(code[d]);
  }
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
        store_code(code, dim, dtype, problem.z_q, first + i);
      }
      error += squared_error(rows[i], code, dim);
    }
    if (stream) Vec::finish_streaming();
    problem.block_errors[block] = error;
  }
}

// Rows begin..end of a gradient, rounded once to z's dtype.
inline void quantize_backward(const QuantizeGradient& problem, int64_t begin, int64_t end) {
  const Rows &dz_q = problem.dz_q, &z = problem.z, &code = problem.code;
  const int64_t dim = problem.dim;
  const float scale = problem.scale;
  const bool is_plain = z.dtype == Dtype::kFloat32 && code.dtype == Dtype::kFloat32 &&
                        dz_q.dtype == Dtype::kFloat32 && z.stride_col == 1 &&
                        dz_q.stride_col == 1 && code.stride_col == 1;
  const bool stream = problem.past_caches && in_whole_vectors(problem.dz, dim);
  for (int64_t n = begin; n < end; ++n) {
    const int64_t code_row =
        problem.code_rows ? problem.code_rows[n * problem.code_rows_stride] : n;
    if (is_plain) {
      const float* incoming = static_cast<const float*>(dz_q.data) + n * dz_q.stride_row;
      const float* row = static_cast<const float*>(z.data) + n * z.stride_row;
      const float* nearest = static_cast<const float*>(code.data) + code_row * code.stride_row;
      float* out = static_cast<float*>(problem.dz) + n * dim;
      if (!stream) {
        for (int64_t d = 0; d < dim; ++d) out[d] = incoming[d] + scale * (row[d] - nearest[d]);
        continue;
      }
      for (int64_t d = 0; d < dim; d += Vec::kLanes) {
        const Vec pull = Vec::broadcast(scale) * (Vec::load(row + d) - Vec::load(nearest + d));
        (Vec::load(incoming + d) + pull).stream(out + d);
      }
      continue;
    }
    for (int64_t d = 0; d < dim; ++d) {
      const float incoming =
          load_element(dz_q.data, n * dz_q.stride_row + d * dz_q.stride_col, dz_q.dtype);
      const float value = load_element(z.data, n * z.stride_row + d * z.stride_col, z.dtype);
      const float nearest =
          load_element(code.data, code_row * code.stride_row + d * code.stride_col, code.dtype);
      const float result = incoming + scale * (value - nearest);
      if (z.dtype == Dtype::kFloat32) {
        static_cast<float*>(problem.dz)[n * dim + d] = result;
      } else {
        static_cast<uint16_t*>(problem.dz)[n * dim + d] =
            z.dtype == Dtype::kBFloat16 ? bfloat16_from_float(result) : half_from_float(result);
      }
    }
  }
  if (stream) Vec::finish_streaming();
}

}  // namespace
}  // namespace vqvae2_fast::cpu
