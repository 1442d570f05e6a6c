// Counts and sums per code: a stable counting sort by code, then sums over segments of the sorted
// rows. Segments depend only on N and partial sums are added in their order, so that the result is
// the same for any number of threads, also where one code takes all rows.
#pragma once

#include "../kernels.h"
#include "../threads/run_parts.h"

namespace vqvae2_fast::cpu {

struct StatisticsProblem {
  Rows z;
  int64_t num_rows, dim, num_codes;
  const int64_t* indices;
  int64_t indices_stride;
  int64_t* counts;  // [K]
  float* sums;      // [K, D]
};

// Returns the first row whose index is not in 0..K-1, having written nothing; or -1.
int64_t code_statistics(const StatisticsProblem& problem, const KernelTable& kernels,
                        const RunParts& run_parts);

}  // namespace vqvae2_fast::cpu
