// One step of a codebook's moving averages: include inside a level file. Reads 3 K D floats, writes
// 2 K D.
#pragma once

#include "ema_update.h"

namespace vqvae2_fast::cpu {
namespace {

inline void ema_update(const EmaProblem& problem) {
  const int64_t num_codes = problem.num_codes, dim = problem.dim;
  const float decay = static_cast<float>(problem.decay);
  const float rest = static_cast<float>(1 - problem.decay);
  double total = 0;
  for (int64_t k = 0; k < num_codes; ++k) {
    const float count =
        problem.counts ? static_cast<float>(problem.counts[k]) : problem.float_counts[k];
    problem.cluster_size[k] = problem.cluster_size[k] * decay + count * rest;
    total += static_cast<double>(problem.cluster_size[k]);
  }
  const double smoothing = total / (total + static_cast<double>(num_codes) * problem.epsilon);
  for (int64_t k = 0; k < num_codes; ++k) {
    const float size = static_cast<float>(
        (static_cast<double>(problem.cluster_size[k]) + problem.epsilon) * smoothing);
    const float* sum = problem.sums + k * dim;
    float* average = problem.embed_avg + k * dim;
    float* code = problem.codebook + k * dim;
    for (int64_t d = 0; d < dim; ++d) {
      average[d] = average[d] * decay + sum[d] * rest;
      // Before any vector was counted there is no mean to move to.
      code[d] = total > 0 ? average[d] / size : code[d];
    }
  }
}

}  // namespace
}  // namespace vqvae2_fast::cpu
