// Kernels of planted_bugs.cu whose blocks do not communicate.
#pragma once

#include "../../cuda/portable.h"
#include "planted_bugs.h"

namespace planted {

using namespace vqvae2_fast::cuda;

constexpr int kThreads = 64;
constexpr int kBins = 4;
constexpr int kRounds = 3;

// For each block of 64 floats, out gets sums of neighbours after the warp's lanes and the reversed
// row have changed the values; histogram counts threads by their last two bits. All values are
// small integers, so everything is exact.
__global__ void block_kernel(const float* x, float* out, int* histogram, Bug bug) {
  VQ_DYNAMIC_SHARED(float, tile);  // [64]
  VQ_SHARED(float, warp_sum, [kThreads / 32]);
  const int t = static_cast<int>(threadIdx.x), lane = t % 32, warp = t / 32;
  const float* row = x + blockIdx.x * kThreads;
  if (bug == Bug::kExitedLane && t == 40) return;

  copy_async<4>(&tile[t], &row[t]);
  copy_async_commit();
  if (bug == Bug::kCopySourceOverwritten) {
    // A barrier comes before the wait, so the copy races only where it was issued.
    const_cast<float*>(row)[kThreads - 1 - t] = 0.0f;
    __syncthreads();
  }
  if (bug != Bug::kMissingCopyWait && bug != Bug::kCopyNeverAwaited) copy_async_wait<0>();
  if (bug == Bug::kDivergentBarrier && lane < 16) {
    __syncthreads();
  } else if (bug == Bug::kBarrierSkippedBySome && warp == 0) {
    __syncwarp();
  } else if (bug != Bug::kMissingSyncthreads) {
    __syncthreads();
  }
  if (bug == Bug::kMissingCopyWait) copy_async_wait<0>();
  float value = tile[kThreads - 1 - t];
  if (bug == Bug::kDynamicSharedOverflow) value += 0.0f * tile[t + 1];
  if (bug == Bug::kGlobalOverflow && blockIdx.x == gridDim.x - 1) value += 0.0f * row[t + 1];
  if (bug == Bug::kMisalignedVector) {
    value += 0.0f * reinterpret_cast<const float2*>(&tile[1 + t / 32])->x;
  }

  if (bug == Bug::kLaneOutsideMask) {
    value += __shfl_xor_sync(0x0000FFFFu, value, 1);
  } else if (bug == Bug::kLanesMissing && lane >= 24) {
    value += 1.0f;
  } else if (bug == Bug::kShuffleFromOutside && lane < 16) {
    value += __shfl_down_sync(0x0000FFFFu, value, 1);
  } else if (bug != Bug::kShuffleFromOutside) {
    value += __shfl_xor_sync(0xFFFFFFFFu, value, 1);
  }

  for (int round = 0; round < kRounds; ++round) {
    if (bug != Bug::kMissingBarrierInLoop) __syncthreads();
    tile[t] = value + static_cast<float>(round);
    __syncthreads();
    value += tile[(t + 1) % kThreads];
  }
  if (bug == Bug::kCopyIntoBufferInUse) {
    copy_async<4>(&tile[t], &row[t]);
    copy_async_commit();
  }
  if (bug != Bug::kCopyIntoBufferInUse) __syncthreads();
  if (bug == Bug::kCopyIntoBufferInUse) copy_async_wait<0>();

  tile[t] = value;
  if (bug != Bug::kMissingSyncwarp) __syncwarp();
  value = tile[t ^ 1];
  if (lane == 0 && (bug != Bug::kUninitialisedShared || warp == 0)) warp_sum[warp] = value;
  if (bug == Bug::kStaticSharedOverflow && lane == 1) warp_sum[warp + 1] = value;
  __syncthreads();
  value += warp_sum[1 - warp];

  if (bug == Bug::kPlainHistogram) {
    histogram[t % kBins] += 1;
  } else {
    atomicAdd(&histogram[t % kBins], 1);
  }
  out[(bug == Bug::kRaceBetweenBlocks ? 0 : blockIdx.x * kThreads) + t] = value;
}

// out [16, 8] = a [16, 16] b [8, 16] transposed, in bfloat16; one warp.
__global__ void matrix_kernel(const uint16_t* a, const uint16_t* b, float* out, Bug bug) {
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  const auto pair = [](const uint16_t* p) { return *reinterpret_cast<const uint32_t*>(p); };
  uint32_t a_pairs[4] = {pair(&a[g * 16 + 2 * t]), pair(&a[(g + 8) * 16 + 2 * t]),
                         pair(&a[g * 16 + 8 + 2 * t]), pair(&a[(g + 8) * 16 + 8 + 2 * t])};
  if (bug == Bug::kSwappedFragments) {
    const uint32_t second = a_pairs[1];
    a_pairs[1] = a_pairs[2];
    a_pairs[2] = second;
  }
  const uint32_t b_pairs[2] = {pair(&b[g * 16 + 2 * t]), pair(&b[g * 16 + 8 + 2 * t])};
  float d[4] = {};
  mma_bf16(d, a_pairs, b_pairs);
  for (int i = 0; i < 4; ++i) out[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
}

}  // namespace planted
