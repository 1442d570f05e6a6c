// Counts and sums of residuals per code, for all quantisers of a residual quantisation. A part is a
// slice of columns of some quantisers, for all rows in their order: each sum belongs to one part,
// so that results are the same for any number of threads. Rows pass through a slice in registers.
#pragma once

#include "../kernels.h"
#include "../threads/run_parts.h"

namespace vqvae2_fast::cpu {

// Returns the first row that has an index outside -1..K-1, with sums not written; or -1.
int64_t residual_statistics(const ResidualStatistics& problem, const KernelTable& kernels,
                            const RunParts& run_parts);

}  // namespace vqvae2_fast::cpu
