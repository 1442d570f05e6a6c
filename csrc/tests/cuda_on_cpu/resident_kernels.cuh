// Kernels of portable_test.cu whose blocks wait for each other, and one whose last block does not
// have to.
#pragma once

#include "../../cuda/portable.h"
#include "../../cuda/sampler/flags.cuh"

namespace cuda_test {

using namespace vqvae2_fast::cuda;

__host__ __device__ inline uint32_t mixed(uint32_t own, uint32_t other) {
  return own * 31u + other * 17u + 5u;
}

// values [2, blocks * threads]: each step reads one half, own and another block's, writes the
// other. Between steps all blocks wait for each other, by the flags of the sampler.
__global__ void mixing_kernel(uint32_t* values, uint32_t* flags, unsigned steps) {
  const unsigned size = gridDim.x * blockDim.x, i = blockIdx.x * blockDim.x + threadIdx.x;
  for (unsigned step = 0; step < steps; ++step) {
    const uint32_t* now = values + step % 2 * size;
    values[(step + 1) % 2 * size + i] = mixed(now[i], now[(i * 7 + 13) % size]);
    sampler::tell_done(&flags[blockIdx.x], step + 1);
    sampler::wait_for_blocks(flags, 0, static_cast<int>(gridDim.x), step + 1,
                             static_cast<int>(step));
  }
}

// values [blocks, threads]: round after round, each block adds one to its predecessor's row.
// A block's flag counts its rows; block 0 takes the last block's of the round before.
__global__ void ring_kernel(float* values, uint32_t* flags, unsigned rounds) {
  const unsigned block = blockIdx.x, previous = (block + gridDim.x - 1) % gridDim.x;
  for (unsigned round = 0; round < rounds; ++round) {
    const unsigned wanted = block == 0 ? round : round + 1;
    if (threadIdx.x == 0) wait_at_least(&flags[previous], wanted);
    __syncthreads();
    // Read rotated, so that every thread depends on another thread of the producer.
    const unsigned turned = blockDim.x - 1 - threadIdx.x;
    const float value = block == 0 && round == 0 ? static_cast<float>(turned) - 1.0f
                                                 : values[previous * blockDim.x + turned];
    __syncthreads();
    values[block * blockDim.x + turned] = value + 1.0f;
    __syncthreads();
    if (threadIdx.x == 0) store_release(&flags[block], round + 1);
  }
}

// Block 1 reads the clock after block 0 has told that it did.
__global__ void clock_kernel(uint32_t* flag, uint64_t* times) {
  if (blockIdx.x == 1) wait_at_least(flag, 1);
  times[blockIdx.x] = nanoseconds();
  if (blockIdx.x == 0) store_release(flag, 1);
}

__global__ void last_block_kernel(float* partial, uint32_t* done, float* total) {
  VQ_SHARED(bool, is_last, [1]);
  const float sum = static_cast<float>((blockIdx.x + 1) * blockDim.x);
  if (threadIdx.x == 0) {
    partial[blockIdx.x] = sum;
    __threadfence();
    is_last[0] = atomicAdd(done, 1u) == gridDim.x - 1;
  }
  __syncthreads();
  if (is_last[0] && threadIdx.x == 0) {
    __threadfence();
    float all = 0;
    for (unsigned i = 0; i < gridDim.x; ++i) all += partial[i];
    *total = all;
  }
}

}  // namespace cuda_test
