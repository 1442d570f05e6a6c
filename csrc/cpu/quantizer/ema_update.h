// The moving averages of a codebook, all contiguous float32, updated in place.
#pragma once

#include <stdint.h>

namespace vqvae2_fast::cpu {

struct EmaProblem {
  int64_t num_codes, dim;
  // [K], n: one of the two is null.
  const int64_t* counts = nullptr;
  const float* float_counts = nullptr;
  const float* sums;    // [K, D]
  float* cluster_size;  // [K], N
  float* embed_avg;     // [K, D], m
  float* codebook;      // [K, D], e
  double decay, epsilon;
};

}  // namespace vqvae2_fast::cpu
