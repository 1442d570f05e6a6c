// The cost of the harness in processor time: one line per primitive. README.md quotes it.
#include <stdio.h>
#include <time.h>

#include "../../cuda/sampler/flags.cuh"
#include "device_array.h"

namespace {

using namespace cuda_test;
using namespace vqvae2_fast::cuda;

__global__ void barriers(int count) {
  for (int i = 0; i < count; ++i) __syncthreads();
}

__global__ void shuffles(int count, float* out) {
  float value = static_cast<float>(threadIdx.x);
  for (int i = 0; i < count; ++i) value += __shfl_xor_sync(~0u, value, 1);
  out[threadIdx.x] = value;
}

__global__ void products(int count, float* out) {
  const uint32_t a[4] = {1, 2, 3, 4}, b[2] = {5, 6};
  float d[4] = {};
  for (int i = 0; i < count; ++i) mma_bf16(d, a, b);
  out[threadIdx.x] = d[0];
}

__global__ void flags_of_all_blocks(uint32_t count, uint32_t* flags) {
  for (uint32_t i = 1; i <= count; ++i) {
    sampler::tell_done(&flags[blockIdx.x], i);
    sampler::wait_for_blocks(flags, 0, static_cast<int>(gridDim.x), i, 0);
  }
}

template <class Run>
void report(const char* what, double count, Run run) {
  const clock_t start = clock();
  must(run());
  printf("%-40s %9.1f ns\n", what,
         static_cast<double>(clock() - start) / CLOCKS_PER_SEC * 1e9 / count);
}

}  // namespace

int main() {
  constexpr int kThreads = 256, kBlocks = 8, kMany = 10000, kSome = 500;
  auto out = zeros<float>(kThreads);
  auto flags = zeros<uint32_t>(kBlocks);
  LaunchShape block, grid;
  block.block = grid.block = dim3(kThreads);
  grid.grid = dim3(kBlocks);
  grid.cooperative = true;
  report("__syncthreads, a thread", kMany * kThreads,
         [&] { return launch("barriers", barriers, block, kMany); });
  report("__shfl_xor_sync, a lane", kMany * kThreads,
         [&] { return launch("shuffles", shuffles, block, kMany, out.data()); });
  report("mma_bf16, a warp", kSome * kThreads / 32,
         [&] { return launch("products", products, block, kSome, out.data()); });
  report("flags of 8 blocks, a thread", kSome * kThreads * kBlocks, [&] {
    return launch("flags_of_all_blocks", flags_of_all_blocks, grid, kSome, flags.data());
  });
  report("a launch, a thread", 20 * kThreads * kBlocks, [&] {
    const char* error = nullptr;
    for (int i = 0; i < 20 && error == nullptr; ++i) error = launch("barriers", barriers, grid, 0);
    return error;
  });
}
