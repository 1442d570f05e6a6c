// Kernels of planted_bugs.cu whose blocks hand each other values.
#pragma once

#include "../../cuda/portable.h"
#include "../../cuda/sampler/flags.cuh"
#include "planted_block_kernels.cuh"

namespace planted {

constexpr int kBlocks = 4;
constexpr int kSteps = 5;

struct Mailboxes {
  float* values;   // [2, blocks, threads]
  uint32_t* full;  // [blocks] rows written
  uint32_t* read;  // [blocks] rows read by the successor
};

// The mistake of a wait without acquire, which portable.h does not offer.
__device__ inline void wait_relaxed(const uint32_t* flag, uint32_t value) {
  while (load_relaxed(flag) < value) {
#if defined(CUDA_ON_CPU)
    cuda_on_cpu::spin("wait_relaxed", flag, value, 0, cuda_on_cpu::Where::here());
#endif
  }
}

// In a step every block publishes a row and reads its predecessor's, rotated. Each block alternates
// between two rows, so a row is written again only after its reader has said that it is done.
__device__ inline void hand_round(const Mailboxes& mail, float& value, int step, Bug bug) {
  const unsigned block = blockIdx.x, t = threadIdx.x, blocks = gridDim.x;
  const unsigned previous = (block + blocks - 1) % blocks;
  float* half = mail.values + step % 2 * blocks * kThreads;
  if (step >= 2 && bug != Bug::kBufferReusedTooEarly) {
    if (t == 0) wait_at_least(&mail.read[block], static_cast<uint32_t>(step - 1));
    __syncthreads();
  }
  half[block * kThreads + t] = value;
  if (bug != Bug::kFlagBeforeBarrier) __syncthreads();
  if (t == 0) {
    const uint32_t rows = static_cast<uint32_t>(step + 1);
    if (bug == Bug::kRelaxedFlag) {
      atomicExch(&mail.full[block], rows);  // which releases nothing
    } else {
      store_release(&mail.full[block], rows);
    }
  }
  if (t == 0 || bug == Bug::kNoBarrierAfterWait) {
    const uint32_t wanted = static_cast<uint32_t>(step + (bug == Bug::kFlagNeverReached ? 2 : 1));
    if (bug == Bug::kRelaxedWait) {
      wait_relaxed(&mail.full[previous], wanted);
    } else if (t == 0) {
      wait_at_least(&mail.full[previous], wanted);
    }
  }
  if (bug != Bug::kNoBarrierAfterWait) __syncthreads();
  const float* theirs = &half[previous * kThreads + kThreads - 1 - t];
  value += bug == Bug::kReadOnlyCache ? __ldg(theirs) : *theirs;
  __syncthreads();
  if (t == 0) store_release(&mail.read[previous], static_cast<uint32_t>(step + 1));
}

// out [blocks, threads]; totals [blocks, threads] are exchanged when all blocks have told
// theirs; *sum by the last block to arrive.
__global__ void grid_kernel(Mailboxes mail, float* totals, float* out, float* sum,
                            uint32_t* counter, Bug bug) {
  VQ_SHARED(bool, is_last, [1]);
  const unsigned block = blockIdx.x, t = threadIdx.x, blocks = gridDim.x;
  float value = static_cast<float>(block * kThreads + t);
  for (int step = 0; step < kSteps; ++step) hand_round(mail, value, step, bug);

  totals[block * kThreads + t] = value;
  if (bug == Bug::kMissingGridBarrier) {
    __syncthreads();
  } else {
    vqvae2_fast::cuda::sampler::tell_done(&mail.full[block], kSteps + 1);
    vqvae2_fast::cuda::sampler::wait_for_blocks(mail.full, 0, static_cast<int>(blocks), kSteps + 1,
                                                kSteps);
  }
  float all = 0;
  for (unsigned other = 0; other < blocks; ++other) all += totals[other * kThreads + t];
  if (bug == Bug::kFenceTooEarly) __threadfence();
  out[block * kThreads + t] = all;
  __syncthreads();

  if (t == 0) {
    if (bug != Bug::kMissingFence && bug != Bug::kFenceTooEarly) __threadfence();
    is_last[0] = atomicAdd(counter, 1u) == blocks - 1;
  }
  __syncthreads();
  if (is_last[0] && t == 0) {
    if (bug != Bug::kMissingFence) __threadfence();
    float everything = 0;
    for (unsigned i = 0; i < blocks * kThreads; ++i) everything += out[i];
    *sum = everything;
  }
}

}  // namespace planted
