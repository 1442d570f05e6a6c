// How the blocks of the persistent kernel announce to each other what is done.
//
// A block's word of progress only grows. Whoever reads the new number also sees all that any thread
// of that block wrote before: the writes happen before the barrier, the barrier before the release,
// the release before the acquire that reads it, and that before the waiting block's barrier.
#pragma once

#include <stdio.h>

#include "../portable.h"

// Polls after which a wait counts as a hang: it says who waits for whom, and ends the kernel. For
// debug builds; 0 waits for ever.
#if !defined(VQ_SPIN_LIMIT)
#define VQ_SPIN_LIMIT 0
#endif

namespace vqvae2_fast::cuda::sampler {

// All threads of a block call this: `number` then says that the block's writes so far are done.
__device__ __forceinline__ void tell_done(uint32_t* progress, uint32_t number) {
  __syncthreads();
  if (threadIdx.x == 0) store_release(progress, number);
}

// Waits until blocks first .. first + count have reached this number. Every one of `threads` polls
// different words, so that they come in one trip to the L2 cache where there are as many threads.
__device__ __forceinline__ void poll_blocks(const uint32_t* progress, int first, int count,
                                            uint32_t number, int stage, int thread, int threads) {
  for (int block = first + thread; block < first + count; block += threads) {
    if (!wait_at_least<VQ_SPIN_LIMIT>(progress + block, number)) {
      printf("sampler: block %d waits in stage %d for block %d, which has done %u of %u\n",
             static_cast<int>(blockIdx.x), stage, block, load_relaxed(progress + block), number);
      __trap();
    }
  }
}

// All threads of a block call this before its step of `stage`. It returns when the others have
// reached this number.
__device__ __forceinline__ void wait_for_blocks(const uint32_t* progress, int first, int count,
                                                uint32_t number, int stage) {
  poll_blocks(progress, first, count, number, stage, threadIdx.x, blockDim.x);
  __syncthreads();
}

}  // namespace vqvae2_fast::cuda::sampler
