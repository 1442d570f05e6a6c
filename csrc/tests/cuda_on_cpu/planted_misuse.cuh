// Kernels of planted_bugs.cu that misuse a primitive and do nothing else. They are for the harness
// only: a GPU would hang or fault on them.
#pragma once

#include "../../cuda/portable.h"
#include "planted_bugs.h"

namespace planted {

using namespace vqvae2_fast::cuda;

constexpr int kMisuseThreads = 80;  // the last warp has only half of its lanes

// Two threads that never meet: the second may write into the stack of the first, which has ended.
__global__ void stack_kernel(int* out) {
  if (threadIdx.x == 0) return;
  volatile char local[64 << 10];
  for (int i = 0; i < static_cast<int>(sizeof(local)); ++i) local[i] = 1;
  out[threadIdx.x] = local[out[threadIdx.x]];
}

// 24 KiB of static shared memory in addition to the dynamic memory of the launch.
__global__ void static_shared_kernel(int* out) {
  VQ_SHARED(int, large, [6144]);
  large[threadIdx.x] = out[threadIdx.x];
}

__global__ void misuse_kernel(int* out, Bug bug) {
  VQ_SHARED(int, words, [kMisuseThreads + 8]);
  const int t = static_cast<int>(threadIdx.x), warp = t / 32;
  switch (bug) {
    case Bug::kMisalignedCopy:
      copy_async<16>(&words[t + 1], &out[0]);
      return;
    case Bug::kShuffleWidth:
      if (warp == 0) out[t] = __shfl_xor_sync(~0u, t, 1, 12);
      return;
    case Bug::kMisalignedMatrixRow:
      if (warp == 0) {
        uint32_t registers[4];
        load_matrix_x4(registers, &words[t + 1]);
        out[t] = static_cast<int>(registers[0]);
      }
      return;
    case Bug::kMixedBarrierKinds:
      if (warp == 0) {
        out[t] = __syncthreads_or(t);
      } else {
        __syncthreads();
      }
      return;
    case Bug::kBarrierOfOthers:
      sync_first(32);
      return;
    case Bug::kGridSyncOfGroups:
      cooperative_groups::this_grid().sync();
      return;
    case Bug::kLanesOfNoThread:
      if (warp == 2) out[t] = __shfl_xor_sync(~0u, t, 1);
      return;
    case Bug::kMixedCollectives:
      if (warp == 0) out[t] = t < 16 ? __any_sync(~0u, t) : __all_sync(~0u, t);
      return;
    case Bug::kExitWhileAwaited:
      if (t < 16) __syncwarp(0xFFFFFFFFu);
      return;
    default:
      return;
  }
}

}  // namespace planted
