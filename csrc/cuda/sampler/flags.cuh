// How the blocks of the persistent kernel tell each other what is done.
//
// A block's word of progress only grows. Whoever reads the new number also sees all that any thread
// of that block wrote before: the writes happen before the barrier, the barrier before the release,
// the release before the acquire that reads it, and that before the waiting block's barrier.
#pragma once

#include "../portable.h"

namespace vqvae2_fast::cuda::sampler {

// By all threads of a block: its writes so far are done, and `number` says so.
__device__ __forceinline__ void tell_done(uint32_t* progress, uint32_t number) {
  __syncthreads();
  if (threadIdx.x == 0) store_release(progress, number);
}

// By all threads of a block: returns when `count` words from `progress` on are at least `number`.
__device__ __forceinline__ void wait_for_blocks(const uint32_t* progress, int count,
                                                uint32_t number) {
  if (threadIdx.x < 32) {
    for (int block = threadIdx.x; block < count; block += 32) {
      wait_at_least(progress + block, number);
    }
  }
  __syncthreads();
}

}  // namespace vqvae2_fast::cuda::sampler
