// Runs cluster_kernel and compares it with the host.
#pragma once

#include "cluster_kernels.cuh"
#include "device_array.h"

namespace planted {

struct ClusterRun {
  const char* error;
  bool states_right, mail_right;
};

inline cuda_test::LaunchShape cluster_shape(int grid, int cluster) {
  cuda_test::LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(grid));
  shape.block = dim3(kClusterThreads);
  shape.cluster = static_cast<unsigned>(cluster);
  shape.shared_bytes = cluster_memory_bytes(cluster);
  return shape;
}

inline ClusterRun run_clusters(int blocks, bool cooperative, Bug bug) {
  constexpr int kClusters = 2;
  cuda_test::LaunchShape shape = cluster_shape(kClusters * blocks, blocks);
  if (vqvae2_fast::cuda::co_resident_clusters(cluster_kernel, shape) < kClusters) {
    return {"no such cluster on this card", false, false};
  }
  shape.cooperative = cooperative;
  const int values = kClusterThreads * blocks, row = values + blocks + 1;
  std::vector<float> weights(kClusterStages * values);
  for (size_t i = 0; i < weights.size(); ++i) weights[i] = static_cast<float>(i * 37 % 101);
  cuda_test::DeviceArray<float> on_card(weights);
  auto out = cuda_test::zeros<float>(static_cast<size_t>(kClusters) * blocks * row);
  ClusterRun run = {launch("cluster_kernel", cluster_kernel, shape,
                           static_cast<const float*>(on_card.data()), out.data(), bug),
                    true, true};
  if (run.error != nullptr) return run;
  std::vector<float> state(values), next(values);
  for (int i = 0; i < values; ++i) state[i] = static_cast<float>(i);
  for (int stage = 0; stage < kClusterStages; ++stage) {
    for (int i = 0; i < values; ++i) {
      next[i] = state[(7 * i + 13) % values] + weights[stage * values + i];
    }
    state.swap(next);
  }
  const std::vector<float> got = out.values();
  for (int block = 0; block < kClusters * blocks; ++block) {
    for (int i = 0; i < values; ++i) run.states_right &= got[block * row + i] == state[i];
    for (int r = 0; r < blocks; ++r) {
      run.mail_right &= got[block * row + values + r] == 2 * state[r * kClusterThreads];
    }
  }
  return run;
}

}  // namespace planted
