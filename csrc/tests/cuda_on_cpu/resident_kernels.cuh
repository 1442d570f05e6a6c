// Kernels of portable_test.cu whose blocks wait for each other, and one whose last block does not
// have to.
#pragma once

#include "../../cuda/portable.h"

namespace cuda_test {

using namespace vqvae2_fast::cuda;

__host__ __device__ inline uint32_t mixed(uint32_t own, uint32_t other) {
  return own * 31u + other * 17u + 5u;
}

// values [2, blocks * threads]: each step reads one half, own and another block's, writes the
// other.
__global__ void mixing_kernel(uint32_t* values, uint32_t* counter, unsigned steps) {
  const unsigned size = gridDim.x * blockDim.x, i = blockIdx.x * blockDim.x + threadIdx.x;
  for (unsigned step = 0; step < steps; ++step) {
    const uint32_t* now = values + step % 2 * size;
    values[(step + 1) % 2 * size + i] = mixed(now[i], now[(i * 7 + 13) % size]);
    grid_sync(counter);
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
    if (threadIdx.x == 0) add_release(&flags[block], 1);
  }
}

// Block 1 reads the clock after block 0 has told that it did.
__global__ void clock_kernel(uint32_t* flag, uint64_t* times) {
  if (blockIdx.x == 1) wait_at_least(flag, 1);
  times[blockIdx.x] = nanoseconds();
  if (blockIdx.x == 0) store_release(flag, 1u);
}

// Block 0 sends one value per thread, with its step in the upper half; all blocks wait for all of
// them.
__global__ void message_kernel(uint64_t* messages, float* sums) {
  VQ_SHARED(float, values, [64]);
  constexpr uint64_t kStep = 3;
  const unsigned i = threadIdx.x;
  if (blockIdx.x == 0) store_relaxed<uint64_t>(&messages[i], kStep << 32 | (i + 1));
  uint64_t message = load_relaxed(&messages[i]);
  while (message >> 32 != kStep) {
    spin_pause();
    message = load_relaxed(&messages[i]);
  }
  values[i] = static_cast<float>(message & 0xFFFFFFFFu);
  __syncthreads();
  if (i == 0) {
    float sum = 0;
    for (unsigned j = 0; j < blockDim.x; ++j) sum += values[j];
    sums[blockIdx.x] = sum;
  }
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
