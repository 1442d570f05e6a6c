// The kernel of gumbel_noise.h: one thread per Philox counter, four codes each.
// Writes 4 * B * P * K bytes and reads only the sample and position numbers.
#pragma once

#include "../common/counter_noise.h"
#include "gumbel_noise.h"
#include "portable.h"

namespace vqvae2_fast::cuda {

__host__ __device__ __forceinline__ int64_t num_counters(const GumbelNoise& args) {
  return args.batch * args.length * ((args.num_embeddings + 3) / 4);
}

__global__ void gumbel_noise_kernel(GumbelNoise args) {
  const int64_t counters_per_row = (args.num_embeddings + 3) / 4, count = num_counters(args);
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += step) {
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
