// Gumbel noise on CUDA: one thread per Philox counter, four codes each.
// Writes 4 * B * P * K bytes, reads nothing but the sample and position numbers.
#pragma once

#include "../common/counter_noise.h"
#include "portable.h"

namespace vqvae2_fast::cuda {

struct GumbelNoiseArgs {
  const int64_t* samples;
  int64_t sample_stride;
  const int64_t* positions;
  int64_t position_stride;
  int64_t length;
  int64_t num_embeddings;
  int64_t num_counters;  // B * P * ceil(K / 4)
  uint64_t seed;
  uint32_t stream;
  float* noise;
};

__global__ void gumbel_noise_kernel(GumbelNoiseArgs args) {
  const int64_t counters_per_row = (args.num_embeddings + 3) / 4;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
       i < args.num_counters; i += step) {
    const int64_t row = i / counters_per_row, counter = i % counters_per_row;
    const int64_t sample = args.samples[row / args.length * args.sample_stride];
    const int64_t position = args.positions[row % args.length * args.position_stride];
    const Words4 words =
        philox4x32(static_cast<uint32_t>(counter), static_cast<uint32_t>(position),
                   static_cast<uint32_t>(sample), args.stream | kPurposeDraw << 16, args.seed);
    float* out = args.noise + row * args.num_embeddings + 4 * counter;
    for (int j = 0; j < 4; ++j) {
      if (4 * counter + j < args.num_embeddings) out[j] = gumbel_from_word(words.w[j]);
    }
  }
}

}  // namespace vqvae2_fast::cuda
