// Sums of rows in float64, as one vector of sums: include inside a level file.
#pragma once

#include "rows.h"

namespace vqvae2_fast::cpu {
namespace {

// sums[d] = the rows order[begin..end), added in that order.
inline void sum_rows(const Rows& z, int64_t dim, const int64_t* order, int64_t begin, int64_t end,
                     double* sums) {
  // The rows of a code may lie anywhere, so the next ones are prefetched while these are added.
  constexpr int64_t kAhead = 6;
  for (int64_t d = 0; d < dim; ++d) sums[d] = 0;
  if (z.dtype == Dtype::kFloat32 && z.stride_col == 1) {
    const float* const data = static_cast<const float*>(z.data);
    for (int64_t i = begin; i < end; ++i) {
      if (i + kAhead < end) {
        const char* next = reinterpret_cast<const char*>(data + order[i + kAhead] * z.stride_row);
        for (int64_t line = 0; line < dim * 4 && line < 1024; line += 64) {
          __builtin_prefetch(next + line);
        }
      }
      const float* row = data + order[i] * z.stride_row;
      for (int64_t d = 0; d < dim; ++d) sums[d] += static_cast<double>(row[d]);
    }
    return;
  }
  for (int64_t i = begin; i < end; ++i) {
    const int64_t start = order[i] * z.stride_row;
    for (int64_t d = 0; d < dim; ++d) {
      sums[d] += static_cast<double>(load_element(z.data, start + d * z.stride_col, z.dtype));
    }
  }
}

}  // namespace
}  // namespace vqvae2_fast::cpu
