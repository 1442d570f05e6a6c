#include "code_statistics.h"

#include <algorithm>
#include <vector>

namespace vqvae2_fast::cpu {
namespace {

// Sorted rows of a segment: enough work for a thread, but few enough that threads can share one
// large code.
constexpr int64_t kSegmentRows = 2048;
constexpr int64_t kMaxSegments = 512;
// Parts that are counted and sorted separately.
constexpr int64_t kMaxSortParts = 16;
constexpr int64_t kSortRows = 4096;

struct SortedRows {
  std::vector<int64_t> offsets;  // [K + 1]
  std::vector<int64_t> order;    // [N], rows by code, in their original order within each code
  int64_t bad_row = -1;
};

SortedRows sort_by_code(const StatisticsProblem& problem, const RunParts& run_parts) {
  const int64_t num_rows = problem.num_rows, num_codes = problem.num_codes;
  // A part has a count for each code, so the number of parts is limited to keep that memory small.
  const int64_t wanted =
      std::min({kMaxSortParts, num_rows / kSortRows, num_rows / (num_codes + 1)});
  const int64_t parts = std::max<int64_t>(1, wanted), rows = (num_rows + parts - 1) / parts;
  const auto end_of = [&](int64_t part) { return std::min((part + 1) * rows, num_rows); };
  const auto index_of = [&](int64_t n) { return problem.indices[n * problem.indices_stride]; };

  std::vector<int64_t> next(parts * num_codes, 0), bad(parts, -1);
  run_parts(parts, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      int64_t* count = next.data() + part * num_codes;
      for (int64_t n = part * rows; n < end_of(part); ++n) {
        const int64_t k = index_of(n);
        if (k < 0 || k >= num_codes) {
          bad[part] = n;
          break;
        }
        ++count[k];
      }
    }
  });
  SortedRows sorted;
  for (int64_t part = parts; part-- > 0;) {
    if (bad[part] >= 0) sorted.bad_row = bad[part];
  }
  if (sorted.bad_row >= 0) return sorted;

  // Turn the counts into where each part's rows of a code begin.
  sorted.offsets.resize(num_codes + 1);
  int64_t position = 0;
  for (int64_t k = 0; k < num_codes; ++k) {
    sorted.offsets[k] = position;
    for (int64_t part = 0; part < parts; ++part) {
      const int64_t count = next[part * num_codes + k];
      next[part * num_codes + k] = position;
      position += count;
    }
  }
  sorted.offsets[num_codes] = position;
  sorted.order.resize(num_rows);
  run_parts(parts, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      int64_t* place = next.data() + part * num_codes;
      for (int64_t n = part * rows; n < end_of(part); ++n) sorted.order[place[index_of(n)]++] = n;
    }
  });
  return sorted;
}

}  // namespace

int64_t code_statistics(const StatisticsProblem& problem, const KernelTable& kernels,
                        const RunParts& run_parts) {
  const int64_t num_rows = problem.num_rows, dim = problem.dim;
  const SortedRows sorted = sort_by_code(problem, run_parts);
  if (sorted.bad_row >= 0) return sorted.bad_row;
  const int64_t* const offsets = sorted.offsets.data();
  const int64_t rows = std::max(kSegmentRows, (num_rows + kMaxSegments - 1) / kMaxSegments);
  const int64_t segments = (num_rows + rows - 1) / rows;

  // A segment writes the sums of codes that lie inside it, and keeps partial sums of the codes that
  // cross its beginning and its end.
  std::vector<double> crossing(2 * segments * dim);
  const auto write = [&](int64_t k, const double* sums) {
    for (int64_t d = 0; d < dim; ++d) problem.sums[k * dim + d] = static_cast<float>(sums[d]);
  };
  run_parts(segments, [&](int64_t first, int64_t last) {
    std::vector<double> inside(dim);
    for (int64_t segment = first; segment < last; ++segment) {
      const int64_t begin = segment * rows, end = std::min(begin + rows, num_rows);
      int64_t k = std::upper_bound(offsets, offsets + problem.num_codes + 1, begin) - offsets - 1;
      for (; k < problem.num_codes && offsets[k] < end; ++k) {
        const int64_t from = std::max(offsets[k], begin), to = std::min(offsets[k + 1], end);
        if (from >= to) continue;
        const bool whole = from == offsets[k] && to == offsets[k + 1];
        double* sums = inside.data();
        if (!whole) sums = crossing.data() + (2 * segment + (from > begin)) * dim;
        kernels.sum_rows(problem.z, dim, sorted.order.data(), from, to, sums);
        if (whole) write(k, sums);
      }
    }
  });

  std::vector<double> total(dim);
  for (int64_t k = 0; k < problem.num_codes; ++k) {
    problem.counts[k] = offsets[k + 1] - offsets[k];
    const int64_t first = offsets[k] / rows, last = (offsets[k + 1] - 1) / rows;
    if (problem.counts[k] > 0 && first == last) continue;
    std::fill(total.begin(), total.end(), 0.0);
    for (int64_t segment = first; problem.counts[k] > 0 && segment <= last; ++segment) {
      const bool from_begin = offsets[k] <= segment * rows;
      const double* part = crossing.data() + (2 * segment + !from_begin) * dim;
      for (int64_t d = 0; d < dim; ++d) total[d] += part[d];
    }
    write(k, total.data());
  }
  return -1;
}

}  // namespace vqvae2_fast::cpu
