// Residual quantisation: Q codebooks in a row, r_{q+1} = r_q - e_q in float32. The problems that
// its kernels solve; the search itself is that of nearest_code.h.
#pragma once

#include <stdint.h>

#include "../rows.h"
#include "nearest_code.h"

namespace vqvae2_fast::cpu {

// Q codebooks of equal size in one of the input dtypes: [Q, K, D] with strides, in elements.
struct Codebooks {
  Rows first;
  int64_t stride;
  int64_t num_quantizers, num_codes, dim;

  bool is_shared() const { return stride == 0; }
  Rows operator[](int64_t q) const {
    Rows rows = first;
    const int64_t bytes = rows.dtype == Dtype::kFloat32 ? 4 : 2;
    rows.data = static_cast<const char*>(rows.data) + q * stride * bytes;
    return rows;
  }
};

struct ResidualProblem {
  Rows z;
  const PackedCodebook* const* codebooks;  // [Q]
  int64_t num_quantizers;
  int64_t* indices;  // [N, Q]
  void* z_q;         // [N, D] contiguous, sums of codes in z's dtype
  // Sums of squares of r_{q+1} of each block of rows, in any order: [blocks, Q].
  double* block_errors;
};

// dz = dz_q + sum of scale[q] r_{q+1}; with `rotate`, dz_q is replaced by the sum of lambda_q R_q^T
// dz_q (vqvae2_fast/ops/_rotation.py).
struct ResidualBackward {
  Rows dz_q, z;
  Codebooks codebooks;
  const int64_t* indices;
  int64_t indices_stride_row, indices_stride_col;
  const float* scales;  // [Q]
  bool rotate;
  void* dz;  // [N, D] contiguous, in z's dtype
};

struct ResidualStatistics {
  Rows z;
  int64_t num_rows;
  Codebooks codebooks;
  const int64_t* indices;  // -1 where a quantiser did not take the row
  int64_t indices_stride_row, indices_stride_col;
  int64_t* counts;  // [Q, K]
  float* sums;      // [Q, K, D]
};

// Columns that are summed at a time: a cache line of each row.
constexpr int64_t kSliceColumns = 16;

// The rows of each code of each quantiser, in their order.
struct RowsByCode {
  const int64_t*
      offsets;           // [Q, K + 1], where a code's rows begin in its quantiser's part of `rows`
  const uint32_t* rows;  // [Q, N]
};

struct ResidualKernels {
  // Solves all of at most kFewRows rows without packing; memory holds 2 x num_rows x D floats.
  void (*few_rows)(const ResidualProblem& problem, int64_t num_rows, float* memory);
  // Solves rows begin..end, begin a multiple of the search's block_rows(D), in workspace(D, Q)
  // bytes of 64-byte aligned memory.
  void (*rows)(const ResidualProblem& problem, int64_t begin, int64_t end, void* memory);
  int64_t (*workspace)(int64_t dim, int64_t num_quantizers);
  // Rows begin..end; memory holds 5 x (D + 16) floats.
  void (*backward)(const ResidualBackward& problem, int64_t begin, int64_t end, float* memory);
  // Writes the sums of columns first_column.. (kSliceColumns at most) of all codes; memory holds N
  // x kSliceColumns floats, 64-byte aligned.
  void (*sum_slice)(const ResidualStatistics& problem, const RowsByCode& sorted,
                    int64_t first_column, float* memory);
};

}  // namespace vqvae2_fast::cpu
