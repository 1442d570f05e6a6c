// Sums of rows in float64, as one vector of sums: include inside a level file.
#pragma once

#include "../rows.h"

namespace vqvae2_fast::cpu {
namespace {

// sums[d] = the rows order[begin..end), added in that order.
inline void sum_rows(const Rows& z, int64_t dim, const int64_t* order, int64_t begin, int64_t end,
                     double* sums) {
  // The rows of a code may lie anywhere, so the next ones are prefetched while these are added.
  constexpr int64_t kAhead = 6, kLine = 64, kMostBytes = 1024;
  constexpr int64_t kPart = 256;
  const int64_t size = z.dtype == Dtype::kFloat32 ? 4 : 2;
  const int64_t bytes = z.stride_col != 1 ? 0 : dim * size < kMostBytes ? dim * size : kMostBytes;
  const char* const data = static_cast<const char*>(z.data);
  for (int64_t d = 0; d < dim; ++d) sums[d] = 0;
  float copy[kPart];
  for (int64_t i = begin; i < end; ++i) {
    if (i + kAhead < end) {
      const char* next = data + order[i + kAhead] * z.stride_row * size;
      for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(next + at);
    }
    for (int64_t first = 0; first < dim; first += kPart) {
      const int64_t count = dim - first < kPart ? dim - first : kPart;
      const float* part = part_as_float(z, order[i], first, count, copy);
      for (int64_t d = 0; d < count; ++d) sums[first + d] += static_cast<double>(part[d]);
    }
  }
}

}  // namespace
}  // namespace vqvae2_fast::cpu
