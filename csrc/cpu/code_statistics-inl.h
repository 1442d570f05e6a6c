// Sums of the vectors of each code: float64 in row order, rounded once, so the result does not
// depend on how codes are shared between threads.
#pragma once

#include "rows.h"

namespace vqvae2_fast::cpu {
namespace {

inline void sum_codes(const Rows& z, int64_t dim, const int64_t* order, const int64_t* offsets,
                      int64_t first, int64_t last, float* sums, double* accumulator) {
  for (int64_t k = first; k < last; ++k) {
    for (int64_t d = 0; d < dim; ++d) accumulator[d] = 0;
    for (int64_t i = offsets[k]; i < offsets[k + 1]; ++i) {
      const int64_t start = order[i] * z.stride_row;
      if (z.dtype == Dtype::kFloat32 && z.stride_col == 1) {
        const float* row = static_cast<const float*>(z.data) + start;
        for (int64_t d = 0; d < dim; ++d) accumulator[d] += static_cast<double>(row[d]);
      } else {
        for (int64_t d = 0; d < dim; ++d) {
          accumulator[d] +=
              static_cast<double>(load_element(z.data, start + d * z.stride_col, z.dtype));
        }
      }
    }
    for (int64_t d = 0; d < dim; ++d) sums[k * dim + d] = static_cast<float>(accumulator[d]);
  }
}

}  // namespace
}  // namespace vqvae2_fast::cpu
