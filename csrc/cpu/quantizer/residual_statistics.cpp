#include "residual_statistics.h"

#include <algorithm>
#include <vector>

#include "../aligned.h"

namespace vqvae2_fast::cpu {
namespace {

// A stable counting sort of the rows of one quantiser by their code. Returns the first row that has
// an index outside -1..K-1, or -1.
int64_t sort_rows(const ResidualStatistics& problem, int64_t q, int64_t* offsets, uint32_t* rows) {
  const int64_t num_codes = problem.codebooks.num_codes;
  const int64_t* const indices = problem.indices + q * problem.indices_stride_col;
  int64_t* const counts = problem.counts + q * num_codes;
  std::fill_n(counts, num_codes, 0);
  for (int64_t n = 0; n < problem.num_rows; ++n) {
    const int64_t index = indices[n * problem.indices_stride_row];
    if (index < -1 || index >= num_codes) return n;
    if (index >= 0) ++counts[index];
  }
  offsets[0] = 0;
  for (int64_t k = 0; k < num_codes; ++k) offsets[k + 1] = offsets[k] + counts[k];
  std::vector<int64_t> next(offsets, offsets + num_codes);
  for (int64_t n = 0; n < problem.num_rows; ++n) {
    const int64_t index = indices[n * problem.indices_stride_row];
    if (index >= 0) rows[next[index]++] = static_cast<uint32_t>(n);
  }
  return -1;
}

}  // namespace

int64_t residual_statistics(const ResidualStatistics& problem, const KernelTable& kernels,
                            const RunParts& run_parts) {
  const int64_t quantizers = problem.codebooks.num_quantizers, num_rows = problem.num_rows;
  const int64_t num_codes = problem.codebooks.num_codes;
  std::vector<int64_t> offsets(quantizers * (num_codes + 1)), bad(quantizers);
  std::vector<uint32_t> rows(quantizers * num_rows);
  run_parts(quantizers, [&](int64_t first, int64_t last) {
    for (int64_t q = first; q < last; ++q) {
      bad[q] =
          sort_rows(problem, q, offsets.data() + q * (num_codes + 1), rows.data() + q * num_rows);
    }
  });
  int64_t bad_row = -1;
  for (const int64_t row : bad) {
    if (row >= 0 && (bad_row < 0 || row < bad_row)) bad_row = row;
  }
  if (bad_row >= 0) return bad_row;

  const RowsByCode sorted = {offsets.data(), rows.data()};
  const int64_t slices = (problem.codebooks.dim + kSliceColumns - 1) / kSliceColumns;
  run_parts(slices, [&](int64_t first, int64_t last) {
    const auto memory = aligned<float>(num_rows * kSliceColumns);
    for (int64_t slice = first; slice < last; ++slice) {
      kernels.residual.sum_slice(problem, sorted, slice * kSliceColumns, memory.get());
    }
  });
  return -1;
}

}  // namespace vqvae2_fast::cpu
