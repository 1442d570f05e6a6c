// Kernels of portable_test.cu inside one block: collectives, barriers, atomics, asynchronous
// copies.
#pragma once

#include "../../cuda/portable.h"

namespace cuda_test {

using namespace vqvae2_fast::cuda;

constexpr int kCollectives = 11;
constexpr const char* kCollectiveNames[kCollectives] = {
    "__shfl_xor_sync",
    "__shfl_down_sync, width 16",
    "__shfl_up_sync, width 8",
    "__shfl_sync, width 4",
    "__reduce_add_sync",
    "__reduce_min_sync",
    "__ballot_sync",
    "__match_any_sync",
    "__any_sync",
    "__all_sync",
    "a collective of eight lanes of a warp",
};

// results [threads, kCollectives]; the last warp may have only half of its lanes.
__global__ void collectives_kernel(uint32_t* results) {
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const uint32_t mask = warp == blockDim.x / 32 ? 0xFFFFu : ~0u;
  const uint32_t value = warp * 100 + lane * lane % 17;
  uint32_t* out = results + threadIdx.x * kCollectives;
  out[0] = __shfl_xor_sync(mask, value, 5);
  out[1] = __shfl_down_sync(mask, value, 3, 16);
  out[2] = __shfl_up_sync(mask, value, 2, 8);
  out[3] = __shfl_sync(mask, value, 1, 4);
  out[4] = __reduce_add_sync(mask, value);
  out[5] = __reduce_min_sync(mask, value);
  out[6] = __ballot_sync(mask, value % 2);
  out[7] = __match_any_sync(mask, value);
  out[8] = __any_sync(mask, value % 2);
  out[9] = __all_sync(mask, value % 2);
  out[10] = 0;
  if (lane < 8) out[10] = __reduce_add_sync(0xFFu, lane);
}

// results [threads, 3], in a block of 4 x 8 x 3.
__global__ void votes_kernel(int* results) {
  const int i = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  results[3 * i] = __syncthreads_count(i < 40);
  results[3 * i + 1] = __syncthreads_and(i < 96);
  results[3 * i + 2] = __syncthreads_or(i > 96);
}

// Two warps reverse 64 words while the third waits for them at another barrier.
__global__ void first_warps_kernel(int* words) {
  VQ_SHARED(int, reversed, [64]);
  const int t = static_cast<int>(threadIdx.x);
  if (t < 64) {
    for (int round = 0; round < 3; ++round) {
      reversed[63 - t] = words[t] + 1;
      sync_first(64);
      words[t] = reversed[t];
      sync_first(64);
    }
  }
  __syncthreads();
  if (t >= 64) words[t] = words[t - 64] + words[t - 32];
}

struct AtomicWords {
  unsigned sum;
  int signed_sum;
  float float_sum;
  int smallest, largest;
  unsigned bits, product;
  unsigned long long wide_sum;
};

__global__ void atomics_kernel(AtomicWords* words) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(&words->sum, static_cast<unsigned>(i));
  atomicSub(&words->signed_sum, 1);
  atomicAdd(&words->float_sum, 0.5f);
  atomicAdd(&words->wide_sum, 1ull << 33);
  atomicMin(&words->smallest, -i);
  atomicMax(&words->largest, i);
  atomicOr(&words->bits, 1u << i % 8);
  if (i % 32 == 0) {
    // A doubling by compare and swap; the word starts at zero, which counts as one.
    unsigned seen = 0, assumed = 0;
    do {
      assumed = seen;
      seen = atomicCAS(&words->product, assumed, assumed == 0 ? 2u : 2 * assumed);
    } while (seen != assumed);
  }
}

// Sums tiles of 128 floats through a ring of three buffers; each row has `width` floats. One warp.
__global__ void pipeline_kernel(const float* in, float* out, int tiles, int width) {
  constexpr int kStages = 3;
  VQ_DYNAMIC_SHARED(float, memory);  // [kStages, 128]
  const int first = 4 * static_cast<int>(threadIdx.x);
  const auto fetch = [&](int tile) {
    if (tile < tiles) {
      copy_async_or_zero<16>(&memory[tile % kStages * 128 + first], in + tile * 128 + first,
                             first < width);
    }
    copy_async_commit();
  };
  for (int tile = 0; tile < kStages - 1; ++tile) fetch(tile);
  float4 sum = make_float4(0, 0, 0, 0);
  for (int tile = 0; tile < tiles; ++tile) {
    copy_async_wait<kStages - 2>();
    __syncwarp();
    // Read rotated by one lane, so that a lane reads what another has fetched.
    const int other = (first + 4) % 128;
    const float4 row = *reinterpret_cast<const float4*>(&memory[tile % kStages * 128 + other]);
    sum = make_float4(sum.x + row.x, sum.y + row.y, sum.z + row.z, sum.w + row.w);
    __syncwarp();
    fetch(tile + kStages - 1);
  }
  copy_async_wait<0>();
  *reinterpret_cast<float4*>(&out[(first + 4) % 128]) = sum;
}

__global__ void large_shared_kernel(float* out, int floats) {
  VQ_DYNAMIC_SHARED(float, memory);
  for (int i = static_cast<int>(threadIdx.x); i < floats; i += static_cast<int>(blockDim.x)) {
    memory[i] = static_cast<float>(i);
  }
  __syncthreads();
  out[threadIdx.x] = memory[floats - 1 - static_cast<int>(threadIdx.x)];
}

}  // namespace cuda_test
