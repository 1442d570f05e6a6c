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
    if (!isfinite(error)) {  // float32 may not hold the squares
      error = 0;
      for (int64_t i = 0; i < count * dim; ++i) {
        error += static_cast<double>(residuals[i]) * static_cast<double>(residuals[i]);
      }
    }
    errors[q] = error;
  }
  for (int64_t i = 0; i < count; ++i) {
    store_numbers(totals + i * dim, dim, problem.z.dtype, problem.z_q, (first + i) * dim);
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

// The search's workspace, then indices of a block, sums of codes, and the trials of each quantiser.
inline int64_t residual_workspace(int64_t dim, int64_t num_quantizers) {
  const int64_t rows = block_rows(dim);
  return Workspace::bytes(dim) + rows * static_cast<int64_t>(sizeof(int64_t)) +
         rows * dim * static_cast<int64_t>(sizeof(float)) +
         num_quantizers * static_cast<int64_t>(sizeof(Trials));
}

inline void residual_rows(const ResidualProblem& problem, int64_t begin, int64_t end,
                          void* memory) {
  const int64_t dim = problem.codebooks[0]->dim, rows_in_block = block_rows(dim);
  const Workspace work(memory, dim);
  int64_t* const found =
      reinterpret_cast<int64_t*>(static_cast<char*>(memory) + Workspace::bytes(dim));
  float* const totals = reinterpret_cast<float*>(found + rows_in_block);
  Trials* const trials = reinterpret_cast<Trials*>(totals + rows_in_block * dim);
  for (int64_t q = 0; q < problem.num_quantizers; ++q) trials[q] = {};
  for (int64_t first = begin; first < end; first += rows_in_block) {
    const int64_t count = first + rows_in_block < end ? rows_in_block : end - first;
    quantize_residuals(problem, first, count, work.rows, work.copies, totals, found,
                       problem.block_errors + first / rows_in_block * problem.num_quantizers,
                       [&](int64_t q, const float* const*, int64_t* index) {
                         search_block(*problem.codebooks[q], work, count, index, trials + q);
                       });
  }
}

// Shorter vectors are divided by this instead of their length, as by F.normalize.
constexpr float kLeastLength = 1e-12f;

// dz += lambda R^T g for the rotation of r to the direction of e. With u = r/|r|, q = e/|e| and
// s = u + q this is lambda (g - 2 (g.s / |s|^2) s + 2 (g.q) u). Rows have whole vectors.
inline void add_rotated_back(const float* g, const float* r, const float* e, int64_t width,
                             float* s, float* dz) {
  Vec squares = Vec::broadcast(0.0f), code_squares = squares, products = squares;
  for (int64_t d = 0; d < width; d += Vec::kLanes) {
    const Vec row = Vec::load(r + d), code = Vec::load(e + d);
    squares = squares.add_product(row, row);
    code_squares = code_squares.add_product(code, code);
    products = products.add_product(Vec::load(g + d), code);
  }
  const float length = sqrtf(lane_sum(squares)), code_length = sqrtf(lane_sum(code_squares));
  const float to_u = 1 / fmaxf(length, kLeastLength), to_q = 1 / fmaxf(code_length, kLeastLength);
  const Vec row_scale = Vec::broadcast(to_u), code_scale = Vec::broadcast(to_q);
  Vec sum_squares = Vec::broadcast(0.0f), sum_products = sum_squares;
  for (int64_t d = 0; d < width; d += Vec::kLanes) {
    const Vec sum = Vec::load(r + d) * row_scale + Vec::load(e + d) * code_scale;
    sum.store(s + d);
    sum_squares = sum_squares.add_product(sum, sum);
    sum_products = sum_products.add_product(Vec::load(g + d), sum);
  }
  const float to_w = 1 / fmaxf(sqrtf(lane_sum(sum_squares)), kLeastLength);
  const float scale = code_length / fmaxf(length, 1e-6f);
  const Vec along_g = Vec::broadcast(scale);
  const Vec along_s = Vec::broadcast(-2 * scale * (to_w * lane_sum(sum_products)) * to_w);
  const Vec along_r = Vec::broadcast(2 * scale * (to_q * lane_sum(products)) * to_u);
  for (int64_t d = 0; d < width; d += Vec::kLanes) {
    Vec::load(dz + d)
        .add_product(along_g, Vec::load(g + d))
        .add_product(along_s, Vec::load(s + d))
        .add_product(along_r, Vec::load(r + d))
        .store(dz + d);
  }
}

inline void copy_row(const Rows& rows, int64_t row, int64_t dim, float* out) {
  const float* const source = row_as_float(rows, row, dim, out);
  for (int64_t d = 0; source != out && d < dim; ++d) out[d] = source[d];
}

inline void residual_backward(const ResidualBackward& problem, int64_t begin, int64_t end,
                              float* memory) {
  // Rows are filled up with zeros to whole vectors.
  const int64_t dim = problem.codebooks.dim;
  const int64_t width = (dim + Vec::kLanes - 1) / Vec::kLanes * Vec::kLanes;
  for (int64_t i = 0; i < 5 * width; ++i) memory[i] = 0;
  float *const residual = memory, *const g = memory + width, *const code = memory + 2 * width;
  float *const sum = memory + 3 * width, *const dz = memory + 4 * width;
  for (int64_t n = begin; n < end; ++n) {
    copy_row(problem.z, n, dim, residual);
    copy_row(problem.dz_q, n, dim, g);
    for (int64_t d = 0; d < width; ++d) dz[d] = problem.rotate ? 0.0f : g[d];
    for (int64_t q = 0; q < problem.codebooks.num_quantizers; ++q) {
      const int64_t index =
          problem.indices[n * problem.indices_stride_row + q * problem.indices_stride_col];
      copy_row(problem.codebooks[q], index, dim, code);
      if (problem.rotate) add_rotated_back(g, residual, code, width, sum, dz);
      const Vec scale = Vec::broadcast(problem.scales[q]);
      for (int64_t d = 0; d < width; d += Vec::kLanes) {
        const Vec left = Vec::load(residual + d) - Vec::load(code + d);
        left.store(residual + d);
        Vec::load(dz + d).add_product(scale, left).store(dz + d);
      }
    }
    store_numbers(dz, dim, problem.z.dtype, problem.dz, n * dim);
  }
}

// `columns` elements of a matrix from `start` on, then zeros up to kSliceColumns: a pointer into
// the matrix if possible, else a copy.
inline const float* slice_as_float(const Rows& rows, int64_t start, int64_t columns, float* copy) {
  if (rows.dtype == Dtype::kFloat32 && rows.stride_col == 1 && columns == kSliceColumns) {
    return static_cast<const float*>(rows.data) + start;
  }
  for (int64_t c = 0; c < kSliceColumns; ++c) {
    copy[c] = c < columns ? load_element(rows.data, start + c * rows.stride_col, rows.dtype) : 0;
  }
  return copy;
}

// Four floats and doubles as the compiler has them at every level: it does not turn loops over
// arrays into such vectors here.
typedef float Float4 __attribute__((vector_size(16)));
typedef double Double4 __attribute__((vector_size(32)));
constexpr int kSliceVectors = kSliceColumns / 4;

struct Slice {
  Float4 part[kSliceVectors];
  static Slice load(const float* values) {
    Slice slice;
    __builtin_memcpy(&slice, values, sizeof(slice));
    return slice;
  }
};

inline void residual_sum_slice(const ResidualStatistics& problem, const RowsByCode& sorted,
                               int64_t first_column, float* residuals) {
  const Codebooks& codebooks = problem.codebooks;
  const int64_t num_codes = codebooks.num_codes, left = codebooks.dim - first_column;
  const int64_t columns = left < kSliceColumns ? left : kSliceColumns;
  float copy[kSliceColumns];
  for (int64_t n = 0; n < problem.num_rows; ++n) {
    const int64_t start = n * problem.z.stride_row + first_column * problem.z.stride_col;
    const float* const row = slice_as_float(problem.z, start, columns, copy);
    for (int64_t c = 0; c < kSliceColumns; ++c) residuals[n * kSliceColumns + c] = row[c];
  }
  for (int64_t q = 0; q < codebooks.num_quantizers; ++q) {
    const Rows codes = codebooks[q];
    const int64_t* const offsets = sorted.offsets + q * (num_codes + 1);
    const uint32_t* const rows = sorted.rows + q * problem.num_rows;
    for (int64_t k = 0; k < num_codes; ++k) {
      const int64_t start = k * codes.stride_row + first_column * codes.stride_col;
      const Slice code = Slice::load(slice_as_float(codes, start, columns, copy));
      Double4 sums[kSliceVectors] = {};
      for (int64_t i = offsets[k]; i < offsets[k + 1]; ++i) {
        float* const residual = residuals + static_cast<int64_t>(rows[i]) * kSliceColumns;
        Slice values = Slice::load(residual);
#pragma GCC unroll 4
        for (int p = 0; p < kSliceVectors; ++p) {
          sums[p] += __builtin_convertvector(values.part[p], Double4);
          values.part[p] -= code.part[p];
        }
        __builtin_memcpy(residual, &values, sizeof(values));
      }
      float* const out = problem.sums + (q * num_codes + k) * codebooks.dim + first_column;
      for (int64_t c = 0; c < columns; ++c) out[c] = static_cast<float>(sums[c / 4][c % 4]);
    }
  }
}

}  // namespace
}  // namespace vqvae2_fast::cpu
