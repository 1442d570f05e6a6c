// A kernel whose blocks form clusters, correct but for the mistake that planted_bugs.cu plants.
#pragma once

#include "../../cuda/portable.h"
#include "planted_bugs.h"

namespace planted {

using namespace vqvae2_fast::cuda;

constexpr int kClusterThreads = 64, kClusterStages = 7, kRing = 2;

// One block's shared memory; a cluster of R blocks has R * 64 values.
struct ClusterMemory {
  float* state[2];    // [values] each: what a stage reads and what it writes
  float* tiles;       // [kRing, 64] weights
  float* mail;        // [R]
  Arrivals* outputs;  // [2]
  Arrivals* full;     // [kRing]
  Arrivals* empty;    // [kRing]
  Arrivals* posted;
};

constexpr size_t cluster_memory_bytes(int blocks) {
  return sizeof(float) * (2 * kClusterThreads * blocks + kRing * kClusterThreads + blocks) + 16 +
         sizeof(Arrivals) * (2 + 2 * kRing + 1);
}

__device__ inline ClusterMemory cluster_memory(float* memory, int blocks) {
  const int values = kClusterThreads * blocks;
  ClusterMemory m;
  m.state[0] = memory;
  m.state[1] = memory + values;
  m.tiles = memory + 2 * values;
  m.mail = m.tiles + kRing * kClusterThreads;
  m.outputs = reinterpret_cast<Arrivals*>(m.mail + (blocks + 1) / 2 * 2);
  m.full = m.outputs + 2;
  m.empty = m.full + kRing;
  m.posted = m.empty + kRing;
  return m;
}

// Asks for a stage's weights [64] of this block, into their place in the ring.
__device__ inline void ask_for_tile(const ClusterMemory& m, const float* weights, int stage,
                                    Bug bug) {
  const int place = stage % kRing;
  const uint32_t bytes = kClusterThreads * sizeof(float);
  const float* from = weights + (stage * cluster_blocks() + cluster_rank()) * kClusterThreads;
  async_proxy_fence();
  arrive_expecting(m.full + place, bytes);
  copy_bulk(m.tiles + place * kClusterThreads, bug == Bug::kMisalignedBulkCopy ? from + 1 : from,
            bytes, m.full + place);
}

// In each stage every value becomes that of another place plus a weight, and goes to all blocks.
// Then the blocks post their first value to each other, through shared and through global memory.
// weights [stages, R, 64], out [clusters, R, values + R + 1].
__global__ void cluster_kernel(const float* weights, float* out, Bug bug) {
  VQ_DYNAMIC_SHARED(float, memory);
  const int blocks = cluster_blocks(), rank = cluster_rank(), t = static_cast<int>(threadIdx.x);
  const int values = kClusterThreads * blocks, own = rank * kClusterThreads + t;
  const ClusterMemory m = cluster_memory(memory, blocks);
  if (t == 0) {
    for (int i = 0; i < 2; ++i) arrivals_init(m.outputs + i, 1);
    for (int i = 0; i < kRing; ++i) {
      arrivals_init(m.full + i, 1);
      arrivals_init(m.empty + i, kClusterThreads / 32);
    }
    arrivals_init(m.posted, static_cast<uint32_t>(blocks));
    arrivals_init_done();
  }
  for (int k = t; k < values; k += kClusterThreads) m.state[0][k] = static_cast<float>(k);
  if (bug == Bug::kBarriersNotReady) {
    __syncthreads();
  } else {
    cluster_sync();
  }
  if (t == 0) {
    for (int stage = 0; stage < kRing; ++stage) ask_for_tile(m, weights, stage, bug);
  }
  for (int stage = 0; stage < kClusterStages; ++stage) {
    const int half = stage % 2, place = stage % kRing;
    const uint32_t parity = stage / kRing % 2, before = (stage - 1) / 2 % 2;
    if (stage > 0) {
      wait_for_phase(m.outputs + (half ^ 1), bug == Bug::kWrongPhase ? before ^ 1 : before);
    }
    if (t == 0) {
      const int expected = bug == Bug::kTooFewBytes && rank == 1 ? values - 1 : values;
      arrive_expecting(m.outputs + half, static_cast<uint32_t>(expected * sizeof(float)));
      if (bug == Bug::kArrivedTwice && stage == 1) arrive(m.outputs + half);
    }
    if (bug != Bug::kReadBeforeLanding) wait_for_phase(m.full + place, parity);
    const float value =
        m.state[half][(7 * own + 13) % values] + m.tiles[place * kClusterThreads + t];
    __syncwarp();  // all of the warp have read
    if (t % 32 == 0) arrive(m.empty + place);
    if (t == 0 && stage + kRing < kClusterStages) {
      if (bug != Bug::kRefilledTooEarly) wait_for_phase(m.empty + place, parity);
      ask_for_tile(m, weights, stage + kRing, bug);
    }
    for (int r = 0; r < blocks; ++r) {
      const bool astray = bug == Bug::kStoreToWrongBlock && own == 70 && r == blocks - 1;
      store_async(m.state[half ^ 1] + own, value, m.outputs + half, astray ? 0 : r);
    }
  }
  constexpr int kLast = kClusterStages - 1;
  if (bug == Bug::kLastValuesNotAwaited && rank == 0) return;
  wait_for_phase(m.outputs + kLast % 2, kLast / 2 % 2);
  if (bug == Bug::kLeavesWhileWrittenTo && rank == 0) return;
  const float* state = m.state[kClusterStages % 2];
  const int row = values + blocks + 1;
  float* const own_out = out + blockIdx.x * row;
  for (int k = t; k < values; k += kClusterThreads) own_out[k] = state[k];

  const auto post = [&] {
    if (t == 0) store_for_cluster(own_out + values + blocks, state[own]);
    __syncwarp();
  };
  if (bug != Bug::kToldBeforeStored) post();
  if (t < blocks && (bug != Bug::kMissingArrive || rank != 1)) {
    const int to = bug == Bug::kMailToWrongBlock && rank == 1 ? (t + 1) % blocks : t;
    store_cluster(m.mail + (bug == Bug::kMailToWrongBlock ? 0 : rank), state[own - t], to);
    arrive_at(m.posted, t);
  }
  if (bug == Bug::kToldBeforeStored) post();
  if (bug != Bug::kMailNotAwaited) wait_for_phase(m.posted, 0);
  if (t < blocks) {
    const float mail = m.mail[t];
    const float* const theirs = own_out + (t - rank) * row + values + blocks;
    // Without the wait the harness would stop here, before ThreadSanitizer sees the race for mail.
    const float stored = bug == Bug::kMailNotAwaited ? mail : load_of_cluster(theirs);
    own_out[values + t] = mail + stored;
  }
  cluster_sync();  // no block leaves while others write to it
}

}  // namespace planted
