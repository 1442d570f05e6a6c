#include "residual_statistics.h"

#include <algorithm>
#include <vector>

namespace vqvae2_fast::cpu {
namespace {

// Sums of a part should stay in the second-level cache, because rows add to them in any order.
constexpr int64_t kCachedSums = 128 << 10;
// Parts to give to threads. More cost time, because quantisers of different parts have their
// residuals computed twice.
constexpr int64_t kMinParts = 4;

// Counts indices, and returns the first row that has one outside -1..K-1, or -1.
int64_t count_codes(const ResidualStatistics& problem) {
  const Codebooks& codebooks = problem.codebooks;
  const int64_t num_codes = codebooks.num_codes;
  std::fill_n(problem.counts, codebooks.num_quantizers * num_codes, 0);
  for (int64_t n = 0; n < problem.num_rows; ++n) {
    for (int64_t q = 0; q < codebooks.num_quantizers; ++q) {
      const int64_t index =
          problem.indices[n * problem.indices_stride_row + q * problem.indices_stride_col];
      if (index < -1 || index >= num_codes) return n;
      if (index >= 0) ++problem.counts[q * num_codes + index];
    }
  }
  return -1;
}

}  // namespace

int64_t residual_statistics(const ResidualStatistics& problem, const KernelTable& kernels,
                            const RunParts& run_parts) {
  const int64_t bad_row = count_codes(problem);
  if (bad_row >= 0) return bad_row;
  const int64_t quantizers = problem.codebooks.num_quantizers;
  const int64_t num_codes = problem.codebooks.num_codes, dim = problem.codebooks.dim;
  const int64_t slices = (dim + kSliceColumns - 1) / kSliceColumns;
  const int64_t cached = kCachedSums / (num_codes * kSliceColumns);
  const int64_t shared = quantizers * slices / kMinParts;
  const int64_t together = std::clamp<int64_t>(std::min(cached, shared), 1, quantizers);
  const int64_t groups = (quantizers + together - 1) / together;
  run_parts(slices * groups, [&](int64_t begin, int64_t end) {
    std::vector<double> sums(together * num_codes * kSliceColumns);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part / slices * together, column = part % slices * kSliceColumns;
      const int64_t last = std::min(first + together, quantizers);
      std::fill(sums.begin(), sums.end(), 0.0);
      kernels.residual.sum_slice(problem, first, last, column, sums.data());
      const int64_t columns = std::min(kSliceColumns, dim - column);
      for (int64_t k = 0; k < (last - first) * num_codes; ++k) {
        float* const out = problem.sums + (first * num_codes + k) * dim + column;
        for (int64_t c = 0; c < columns; ++c) {
          out[c] = static_cast<float>(sums[k * kSliceColumns + c]);
        }
      }
    }
  });
  return -1;
}

}  // namespace vqvae2_fast::cpu
