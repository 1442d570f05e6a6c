// The first part of the row phase: what the stem adds for codes of the rows above.
#pragma once

#include "memory.cuh"

namespace vqvae2_fast::cuda::sampler {

// The stem's sums over codes of rows above, [B, W, C].
constexpr int kStemThreads = 256;

__global__ void __launch_bounds__(kStemThreads) stem_row_kernel(const Network net, int i) {
  const int64_t count = static_cast<int64_t>(net.batch) * net.width * net.channels;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; item < count;
       item += step) {
    const int c = item % net.channels;
    const int j = item / net.channels % net.width;
    const int64_t sample = item / net.channels / net.width;
    const int64_t* codes = net.codes + sample * net.height * net.width;
    float sum = net.stem_bias[(static_cast<int64_t>(i) * net.width + j) * net.channels + c];
    for (int t = 0; t < net.num_stem_above; ++t) {
      const int row = i + net.stem_above_taps[2 * t], column = j + net.stem_above_taps[2 * t + 1];
      if (row < 0 || column < 0 || column >= net.width) continue;
      const int64_t entry =
          static_cast<int64_t>(t) * net.num_embeddings + codes[row * net.width + column];
      sum += net.stem_above[entry * net.channels + c];
    }
    net.stem_row[item] = sum;
  }
}

}  // namespace vqvae2_fast::cuda::sampler
