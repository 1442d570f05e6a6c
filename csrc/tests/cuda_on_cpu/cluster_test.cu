// Tests portable_cluster.h on the harness and, built by nvcc, on a GPU with clusters.
#include <string.h>

#include "cluster_kernels.cuh"
#include "device_array.h"
#include "planted_clusters.h"

namespace {

using namespace cuda_test;

Checks check;

// Every thread of a cluster adds its block's number to a word of global memory before the barrier,
// and reads all of them after it.
__global__ void barrier_kernel(int* words, int* sums) {
  const int blocks = vqvae2_fast::cuda::cluster_blocks();
  const int first = static_cast<int>(blockIdx.x) - vqvae2_fast::cuda::cluster_rank();
  for (int round = 0; round < 3; ++round) {
    if (threadIdx.x == 0) words[blockIdx.x] += vqvae2_fast::cuda::cluster_rank() + 1;
    vqvae2_fast::cuda::cluster_sync();
    int sum = 0;
    for (int r = 0; r < blocks; ++r) sum += words[first + r];
    sums[blockIdx.x * blockDim.x + threadIdx.x] = sum;
    vqvae2_fast::cuda::cluster_sync();
  }
}

void test_barrier() {
  constexpr unsigned kBlocks = 8, kCluster = 4, kThreads = 64;
  auto words = zeros<int>(kBlocks), sums = zeros<int>(kBlocks * kThreads);
  LaunchShape shape;
  shape.grid = dim3(kBlocks);
  shape.block = dim3(kThreads);
  shape.cluster = kCluster;
  must(launch("barrier_kernel", barrier_kernel, shape, words.data(), sums.data()));
  check(sums.values() == std::vector<int>(kBlocks * kThreads, 3 * (1 + 2 + 3 + 4)),
        "cluster_sync orders what the cluster's blocks write and read");
}

void test_chain() {
  for (const int blocks : {2, 4, 16}) {
    for (const bool cooperative : {true, false}) {
      const planted::ClusterRun run =
          planted::run_clusters(blocks, cooperative, planted::Bug::kNone);
      if (blocks > 8 && run.error != nullptr && strstr(run.error, "no such cluster") != nullptr) {
        continue;  // a card may have none of 16 blocks
      }
      must(run.error);
      check(run.states_right, "values go to every block of the cluster, weights through a ring");
      check(run.mail_right, "blocks write to each other and arrive at each other's barriers");
    }
  }
}

void test_launch_errors() {
  LaunchShape shape = planted::cluster_shape(3, 4);
  const char* error =
      launch("cluster_kernel", planted::cluster_kernel, shape, static_cast<const float*>(nullptr),
             static_cast<float*>(nullptr), planted::Bug::kNone);
  check(error != nullptr && strstr(error, "clusters of 4") != nullptr,
        "a grid that is no multiple of its clusters is an error that tells their size");
  shape = planted::cluster_shape(32, 32);
  check(co_resident_clusters(planted::cluster_kernel, shape) == 0, "no card has clusters of 32");
  shape = planted::cluster_shape(4, 4);
  check(co_resident_clusters(planted::cluster_kernel, shape) > 0, "a card has clusters of 4");
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::device().major = 8;
  check(co_resident_clusters(planted::cluster_kernel, shape) == 0,
        "a card of capability 8.0 has no clusters");
  cuda_on_cpu::device().major = 9;
  setenv("CUDA_ON_CPU_PTX", "80", 1);
  check(co_resident_clusters(planted::cluster_kernel, shape) == 0,
        "code for cards before 9.0 is launched on no clusters, whatever the card");
  unsetenv("CUDA_ON_CPU_PTX");
  shape.shared_bytes = 200 << 10;
  shape.cluster = 2;
  check(co_resident_clusters(planted::cluster_kernel, shape) ==
            cuda_on_cpu::device().multiprocessors / 2,
        "clusters are counted by what their blocks take");
#endif
}

}  // namespace

int main() {
  test_barrier();
  test_chain();
  test_launch_errors();
  return check.finish("cluster_test");
}
