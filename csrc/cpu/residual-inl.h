// Residual quantisation of one SIMD level: include after a simd/ header, inside a level file.
//
// A block of rows passes all quantisers while its residuals are in the cache: the search of
// nearest_code-inl.h finds the codes of one quantiser, and what they leave over is searched next.
#pragma once

#include <math.h>

#include "nearest_code-inl.h"
#include "residual.h"

namespace vqvae2_fast::cpu {
namespace {

// residual = row - code, total += code; returns the sum of squares of the residual, of which at
// most eight per lane are added in float32. The residual may take the place of the row.
inline double take_code(const float* row, const float* code, int64_t dim, float* residual,
                        float* total) {
  constexpr int64_t kPart = 8 * Vec::kLanes;
  double sum = 0;
  int64_t d = 0;
  while (d + Vec::kLanes <= dim) {
    const int64_t end = d + kPart < dim ? d + kPart : dim;
    Vec squares = Vec::broadcast(0.0f);
    for (; d + Vec::kLanes <= end; d += Vec::kLanes) {
      const Vec e = Vec::load(code + d), left = Vec::load(row + d) - e;
      left.store(residual + d);
      (Vec::load(total + d) + e).store(total + d);
      squares = squares.add_product(left, left);
    }
    sum += static_cast<double>(lane_sum(squares));
  }
  for (; d < dim; ++d) {
    const float left = row[d] - code[d];
    residual[d] = left;
    total[d] += code[d];
    sum += static_cast<double>(left) * static_cast<double>(left);
  }
  return sum;
}

// Takes `count` rows through all quantisers. search(q, rows, found) finds the codes of one of them;
// residuals and totals hold count x D floats.
template <class Search>
inline void quantize_residuals(const ResidualProblem& problem, int64_t first, int64_t count,
                               const float** rows, float* residuals, float* totals, int64_t* found,
                               double* errors, const Search& search) {
  const int64_t dim = problem.codebooks[0]->dim, num_quantizers = problem.num_quantizers;
  load_rows(problem.z, first, count, dim, residuals, rows);
  for (int64_t i = 0; i < count * dim; ++i) totals[i] = 0;
  for (int64_t q = 0; q < num_quantizers; ++q) {
    search(q, rows, found);
    double error = 0;
    for (int64_t i = 0; i < count; ++i) {
      float* const residual = residuals + i * dim;
      const float* const code = problem.codebooks[q]->codes + found[i] * dim;
      error += take_code(rows[i], code, dim, residual, totals + i * dim);
      rows[i] = residual;
      problem.indices[(first + i) * num_quantizers + q] = found[i];
    }
    errors[q] = error;
  }
  for (int64_t i = 0; i < count; ++i) {
    store_code(totals + i * dim, dim, problem.z.dtype, problem.z_q, first + i);
  }
}

inline void residual_few_rows(const ResidualProblem& problem, int64_t num_rows, float* memory) {
  const float* rows[kFewRows];
  int64_t found[kFewRows];
  float* const totals = memory + num_rows * problem.codebooks[0]->dim;
  quantize_residuals(problem, 0, num_rows, rows, memory, totals, found, problem.block_errors,
                     [&](int64_t q, const float* const* row, int64_t* index) {
                       for (int64_t i = 0; i < num_rows; ++i) {
                         index[i] = search_directly(*problem.codebooks[q], row[i]);
                       }
                     });
}

// The search's workspace, then sums of codes, indices of a block, and a counter per quantiser.
inline int64_t residual_workspace(int64_t dim, int64_t num_quantizers) {
  const int64_t rows = block_rows(dim);
  return Workspace::bytes(dim) + rows * static_cast<int64_t>(sizeof(int64_t)) +
         rows * dim * static_cast<int64_t>(sizeof(float)) +
         num_quantizers * static_cast<int64_t>(sizeof(int));
}

inline void residual_rows(const ResidualProblem& problem, int64_t begin, int64_t end,
                          void* memory) {
  const int64_t dim = problem.codebooks[0]->dim, rows_in_block = block_rows(dim);
  const Workspace work(memory, dim);
  int64_t* const found =
      reinterpret_cast<int64_t*>(static_cast<char*>(memory) + Workspace::bytes(dim));
  float* const totals = reinterpret_cast<float*>(found + rows_in_block);
  int* const skip_pairs = reinterpret_cast<int*>(totals + rows_in_block * dim);
  for (int64_t q = 0; q < problem.num_quantizers; ++q) skip_pairs[q] = 0;
  for (int64_t first = begin; first < end; first += rows_in_block) {
    const int64_t count = first + rows_in_block < end ? rows_in_block : end - first;
    quantize_residuals(problem, first, count, work.rows, work.copies, totals, found,
                       problem.block_errors + first / rows_in_block * problem.num_quantizers,
                       [&](int64_t q, const float* const*, int64_t* index) {
                         search_block(*problem.codebooks[q], work, count, index, skip_pairs + q);
                       });
  }
}

inline float dot(const float* a, const float* b, int64_t dim) {
  Vec sum = Vec::broadcast(0.0f);
  int64_t d = 0;
  for (; d + Vec::kLanes <= dim; d += Vec::kLanes) {
    sum = sum.add_product(Vec::load(a + d), Vec::load(b + d));
  }
  float total = lane_sum(sum);
  for (; d < dim; ++d) total += a[d] * b[d];
  return total;
}

// The scale of F.normalize.
inline float inverse_length(float square) { return 1 / fmaxf(sqrtf(square), 1e-12f); }

// dz += lambda R^T g for the rotation of r to the direction of e, with u = r/|r|, q = e/|e|, s = u
// + q: lambda (g - 2 (g.s / |s|^2) s + 2 (g.q) u).
inline void add_rotated_back(const float* g, const float* r, const float* e, int64_t dim, float* s,
                             float* dz) {
  const float square = dot(r, r, dim), code_square = dot(e, e, dim);
  const float to_u = inverse_length(square), to_q = inverse_length(code_square);
  for (int64_t d = 0; d < dim; ++d) s[d] = to_u * r[d] + to_q * e[d];
  const float to_w = inverse_length(dot(s, s, dim));
  const float scale = sqrtf(code_square) / fmaxf(sqrtf(square), 1e-6f);
  const float along_s = -2 * scale * (to_w * dot(g, s, dim)) * to_w;
  const float along_r = 2 * scale * (to_q * dot(g, e, dim)) * to_u;
  for (int64_t d = 0; d < dim; ++d) dz[d] += scale * g[d] + along_s * s[d] + along_r * r[d];
}

inline void residual_backward(const ResidualBackward& problem, int64_t begin, int64_t end,
                              float* memory) {
  const int64_t dim = problem.codebooks.dim;
  float *const residual = memory, *const incoming = memory + dim, *const copy = memory + 2 * dim;
  float *const direction = memory + 3 * dim, *const dz = memory + 4 * dim;
  for (int64_t n = begin; n < end; ++n) {
    const float* const row = row_as_float(problem.z, n, dim, residual);
    const float* const g = row_as_float(problem.dz_q, n, dim, incoming);
    for (int64_t d = 0; d < dim; ++d) residual[d] = row[d];
    for (int64_t d = 0; d < dim; ++d) dz[d] = problem.rotate ? 0.0f : g[d];
    for (int64_t q = 0; q < problem.codebooks.num_quantizers; ++q) {
      const int64_t index =
          problem.indices[n * problem.indices_stride_row + q * problem.indices_stride_col];
      const float* const e = row_as_float(problem.codebooks[q], index, dim, copy);
      if (problem.rotate) add_rotated_back(g, residual, e, dim, direction, dz);
      const float scale = problem.scales[q];
      for (int64_t d = 0; d < dim; ++d) {
        residual[d] -= e[d];
        dz[d] += scale * residual[d];
      }
    }
    store_code(dz, dim, problem.z.dtype, problem.dz, n);
  }
}

// `columns` elements of a matrix from `start` on: a pointer into it if possible, else a copy.
inline const float* columns_as_float(const Rows& rows, int64_t start, int64_t columns,
                                     float* copy) {
  if (rows.dtype == Dtype::kFloat32 && rows.stride_col == 1) {
    return static_cast<const float*>(rows.data) + start;
  }
  for (int64_t c = 0; c < columns; ++c) {
    copy[c] = load_element(rows.data, start + c * rows.stride_col, rows.dtype);
  }
  return copy;
}

// As ResidualKernels::sum_slice says, for slices of WIDTH columns, or of `columns` if it is 0.
template <int WIDTH>
inline void sum_columns(const ResidualStatistics& problem, int64_t first, int64_t last,
                        int64_t first_column, int64_t columns, double* sums) {
  const int64_t width = WIDTH ? WIDTH : columns, num_codes = problem.codebooks.num_codes;
  const Rows &z = problem.z, &codes = problem.codebooks.first;
  for (int64_t n = 0; n < problem.num_rows; ++n) {
    float residual[kSliceColumns], copy[kSliceColumns];
    const float* const row =
        columns_as_float(z, n * z.stride_row + first_column * z.stride_col, width, copy);
    for (int64_t c = 0; c < width; ++c) residual[c] = row[c];
    for (int64_t q = 0; q < last; ++q) {
      const int64_t index =
          problem.indices[n * problem.indices_stride_row + q * problem.indices_stride_col];
      if (index < 0) continue;
      if (q >= first) {
        double* const sum = sums + ((q - first) * num_codes + index) * kSliceColumns;
        for (int64_t c = 0; c < width; ++c) sum[c] += static_cast<double>(residual[c]);
      }
      const int64_t start =
          q * problem.codebooks.stride + index * codes.stride_row + first_column * codes.stride_col;
      const float* const code = columns_as_float(codes, start, width, copy);
      for (int64_t c = 0; c < width; ++c) residual[c] -= code[c];
    }
  }
}

inline void residual_sum_slice(const ResidualStatistics& problem, int64_t first, int64_t last,
                               int64_t first_column, double* sums) {
  const int64_t columns = problem.codebooks.dim - first_column;
  if (columns >= kSliceColumns) {
    sum_columns<kSliceColumns>(problem, first, last, first_column, kSliceColumns, sums);
  } else {
    sum_columns<0>(problem, first, last, first_column, columns, sums);
  }
}

}  // namespace
}  // namespace vqvae2_fast::cpu
