// The cost of the harness in processor time: one line per primitive. README.md quotes it.
#include <stdio.h>
#include <time.h>

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

__global__ void grid_barriers(int count, uint32_t* counter) {
  for (int i = 0; i < count; ++i) grid_sync(counter);
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
  auto counter = zeros<uint32_t>(1);
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
  report("grid_sync of 8 blocks, a thread", kSome * kThreads * kBlocks,
         [&] { return launch("grid_barriers", grid_barriers, grid, kSome, counter.data()); });
  report("a launch, a thread", 20 * kThreads * kBlocks, [&] {
    const char* error = nullptr;
    for (int i = 0; i < 20 && error == nullptr; ++i) error = launch("barriers", barriers, grid, 0);
    return error;
  });
}
