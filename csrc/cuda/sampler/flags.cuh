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

// All threads of a block call this before its step of `stage`. It returns when blocks first ..
// first + count have reached this number. Every thread polls a different word, so that all words
// come in one trip to the L2 cache.
__device__ __forceinline__ void wait_for_blocks(const uint32_t* progress, int first, int count,
                                                uint32_t number, int stage) {
  for (int block = first + threadIdx.x; block < first + count; block += blockDim.x) {
    if (!wait_at_least<VQ_SPIN_LIMIT>(progress + block, number)) {
      printf("sampler: block %d waits in stage %d for block %d, which has done %u of %u\n",
             static_cast<int>(blockIdx.x), stage, block, load_relaxed(progress + block), number);
      __trap();
    }
  }
  __syncthreads();
}

}  // namespace vqvae2_fast::cuda::sampler
