// When each block did what, for builds with -DVQ_STAGE_TIMES; nothing without it.
//
// Times are the card's nanoseconds, the same clock for all blocks. They go to
// `Network::stage_times`, [W, blocks, stages, moments], which every row of the map writes again. A
// block that has no part in a stage, or a step that a row did not take, leaves it as it was.
#pragma once

#include "../portable.h"
#include "program.h"

namespace vqvae2_fast::cuda::sampler {

// What a step waited for is there; its work is done, by the block's first thread; others may see
// it.
enum class Moment : int32_t { kReady, kComputed, kTold };

// The block's first `threads` threads call this; the first one writes.
__device__ __forceinline__ void note_time(const Program& program, int t, int stage, Moment moment,
                                          int threads = blockDim.x) {
#if defined(VQ_STAGE_TIMES)
  uint64_t* const times = program.network.stage_times;
  if (times == nullptr) return;
  if (moment == Moment::kComputed) sync_first(threads);  // by all of them
  if (threadIdx.x != 0) return;
  const int64_t at =
      (static_cast<int64_t>(t) * program.grid + blockIdx.x) * program.num_stages + stage;
  times[at * kMoments + static_cast<int>(moment)] = nanoseconds();
#else
  static_cast<void>(program), static_cast<void>(t), static_cast<void>(stage);
  static_cast<void>(moment), static_cast<void>(threads);
#endif
}

}  // namespace vqvae2_fast::cuda::sampler
