// Takes the norms of a prior's weights and checks their size before codes are drawn, as fast as
// reading them.
#pragma once

#include <stdint.h>

#include <vector>

#include "content_hash.h"

namespace vqvae2_fast::cpu {

// A weight [outputs, inputs, taps], contiguous, of whose taps the first `live` count.
struct NormedWeight {
  const float* values = nullptr;
  int64_t outputs = 0, inputs = 0, taps = 0, live = 0;
  float* norms = nullptr;  // [outputs], written
};

// The 2-norm of each output, with the same bits on every machine and with any number of threads:
// squares are float64; the square of value e = input * taps + tap is added to sum e mod 16; the 16
// sums are added by halves; the root is rounded to float32. Throws as Team::run.
void weight_norms(const std::vector<NormedWeight>& weights, int threads);

// Whether all float32 values are at most `bound` in absolute value, and none is NaN. Throws as
// Team::run.
bool within(const std::vector<Block>& blocks, float bound, int threads);

}  // namespace vqvae2_fast::cpu
