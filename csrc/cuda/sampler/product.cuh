// A unit of a product: two sums over a staged row of inputs, by one warp, for several network rows.
#pragma once

#include "../portable.h"
#include "program.h"

namespace vqvae2_fast::cuda::sampler {

// A weight of 2 bytes: the upper half of a float.
struct BFloat16 {
  uint16_t bits;
};

__device__ __forceinline__ float4 four_weights(const float* at) {
  return *reinterpret_cast<const float4*>(at);
}
__device__ __forceinline__ float4 four_weights(const BFloat16* at) {
  const uint2 words = *reinterpret_cast<const uint2*>(at);
  return make_float4(__uint_as_float(words.x << 16), __uint_as_float(words.x & 0xFFFF0000u),
                     __uint_as_float(words.y << 16), __uint_as_float(words.y & 0xFFFF0000u));
}
__device__ __forceinline__ float one_weight(const float* at) { return *at; }
__device__ __forceinline__ float one_weight(const BFloat16* at) {
  return __uint_as_float(static_cast<uint32_t>(at->bits) << 16);
}

// A lane's part of the sums of ROWS network rows. `inputs` lie in shared memory, `stride` apart. If
// there are fewer rows, the last one stands for those that are missing.
template <int ROWS, typename Weight>
__device__ __forceinline__ void add_products(const Weight* unit, const float* inputs, int stride,
                                             int rows, int padded_inputs, int lane,
                                             float2 (&sums)[ROWS]) {
#pragma unroll
  for (int r = 0; r < ROWS; ++r) sums[r] = make_float2(0.0f, 0.0f);
  const int chunks = padded_inputs / kInputChunk;
#pragma unroll(ROWS > 2 ? 1 : 4)
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const Weight* weights = unit + chunk * (kUnit * kInputChunk) + kGroup * lane;
    const float4 v = four_weights(weights), w = four_weights(weights + kInputChunk);
    const float* at = inputs + chunk * kInputChunk + kGroup * lane;
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const float4 a = *reinterpret_cast<const float4*>(at + min(r, rows - 1) * stride);
      sums[r].x = fmaf(v.x, a.x, sums[r].x);
      sums[r].y = fmaf(w.x, a.x, sums[r].y);
      sums[r].x = fmaf(v.y, a.y, sums[r].x);
      sums[r].y = fmaf(w.y, a.y, sums[r].y);
      sums[r].x = fmaf(v.z, a.z, sums[r].x);
      sums[r].y = fmaf(w.z, a.z, sums[r].y);
      sums[r].x = fmaf(v.w, a.w, sums[r].x);
      sums[r].y = fmaf(w.w, a.w, sums[r].y);
    }
  }
  for (int k = chunks * kInputChunk; k < padded_inputs; k += kLanes) {
    const float v = one_weight(unit + kUnit * k + lane);
    const float w = one_weight(unit + kUnit * k + kLanes + lane);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const float a = inputs[min(r, rows - 1) * stride + k + lane];
      sums[r].x = fmaf(v, a, sums[r].x);
      sums[r].y = fmaf(w, a, sums[r].y);
    }
  }
}

// Adds over the lanes, halves first: (l) + (l ^ 16), then ^ 8, ^ 4, ^ 2, ^ 1. While there are
// several rows, a lane gives half of them away at each step: row r ends in lanes
// r * 32 / ROWS .. of the warp. The order of a row's sum does not depend on ROWS.
template <int ROWS, typename Pair>
__device__ __forceinline__ Pair add_lanes(Pair (&sums)[ROWS], int lane) {
  constexpr unsigned kAll = 0xFFFFFFFFu;
  int count = ROWS;
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    if (count > 1) {
      count /= 2;
      const bool upper = lane & step;
#pragma unroll
      for (int r = 0; r < ROWS / 2; ++r) {
        if (r >= count) break;
        const Pair kept = upper ? sums[r + count] : sums[r];
        const Pair given = upper ? sums[r] : sums[r + count];
        sums[r].x = kept.x + __shfl_xor_sync(kAll, given.x, step);
        sums[r].y = kept.y + __shfl_xor_sync(kAll, given.y, step);
      }
    } else {
      sums[0].x += __shfl_xor_sync(kAll, sums[0].x, step);
      sums[0].y += __shfl_xor_sync(kAll, sums[0].y, step);
    }
  }
  return sums[0];
}

}  // namespace vqvae2_fast::cuda::sampler
