// Attention of one position over those before it. A warp computes the partial result of a chunk of
// positions; the reader merges them in the order of the chunks.
#pragma once

#include "math.cuh"
#include "memory.cuh"
#include "program.h"

namespace vqvae2_fast::cuda::sampler {

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xFFFFFFFFu, value, step));
  }
  return value;
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    value += __shfl_xor_sync(0xFFFFFFFFu, value, step);
  }
  return value;
}

__device__ __forceinline__ int chunks_before(int position) {
  return (position + kChunk - 1) / kChunk;
}

// Item (network row, head, chunk) of a block: positions chunk * kChunk .. below the row's own.
// `weights` is the warp's scratch of kChunk floats in shared memory.
template <class To>
__device__ __forceinline__ void attend_chunk(const Network& net, Place place, int block, int head,
                                             int chunk, float* weights, int lane, const To& to) {
  constexpr int kPerLane = kChunk / kLanes;
  const int dim = net.head_dim, first = chunk * kChunk;
  const int count = min(kChunk, place.i * net.width + place.j - first);
  const int64_t positions = (net.height * net.width + kLanes - 1) / kLanes * kLanes;
  const int64_t cached =
      ((static_cast<int64_t>(block) * net.rows + place.n) * net.num_heads + head) * positions * dim;
  const float* query = net.query + (place.n * net.num_heads + head) * dim;
  const float* keys = net.keys + cached + static_cast<int64_t>(first) * dim + lane;
  float scores[kPerLane];
#pragma unroll
  for (int t = 0; t < kPerLane; ++t) scores[t] = 0.0f;
  for (int c = 0; c < dim; ++c) {
    const float q = to.get(query + c);
#pragma unroll
    for (int t = 0; t < kPerLane; ++t) {
      // Not the lanes beyond: in a cluster their keys may just be written.
      if (t * kLanes + lane < count) {
        scores[t] = fmaf(q, to.get_cached(keys + (t * dim + c) * kLanes), scores[t]);
      }
    }
  }
  float largest = -INFINITY;
#pragma unroll
  for (int t = 0; t < kPerLane; ++t) {
    if (t * kLanes + lane < count) largest = fmaxf(largest, scores[t]);
  }
  largest = warp_max(largest);
  float total = 0.0f;
  __syncwarp();  // the scratch is no longer read
#pragma unroll
  for (int t = 0; t < kPerLane; ++t) {
    const int p = t * kLanes + lane;
    const float weight = p < count ? exponential(scores[t] - largest) : 0.0f;
    weights[p] = weight;
    total += weight;
  }
  total = warp_sum(total);
  __syncwarp();

  const int64_t part =
      (static_cast<int64_t>(place.n) * net.num_heads + head) * net.max_chunks + chunk;
  float* partial = net.partials + part * (dim + kPartialHead);
  if (lane == 0) {
    to.put(partial, largest);
    to.put(partial + 1, total);
  }
  // Heads narrower than a warp: several positions side by side, added by halves.
  int width = 1;
  while (width < dim && width < kLanes) width *= 2;
  const int together = kLanes / width, own = lane / width;
  const float* values = net.values + cached + static_cast<int64_t>(first) * dim;
  for (int c = lane % width; c < (dim + width - 1) / width * width; c += width) {
    float sum = 0.0f;
    if (c < dim) {
      for (int p = own; p < count; p += together) {
        sum = fmaf(weights[p], to.get_cached(values + p * dim + c), sum);
      }
    }
    for (int step = kLanes / 2; step >= width; step /= 2) {
      sum += __shfl_xor_sync(0xFFFFFFFFu, sum, step);
    }
    if (own == 0 && c < dim) to.put(partial + kPartialHead + c, sum);
  }
}

// Channel c of a network row's attended values; 0 for the first position.
template <class To>
__device__ __forceinline__ float attended(const Network& net, Place place, int c, const To& to) {
  const int chunks = chunks_before(place.i * net.width + place.j),
            size = net.head_dim + kPartialHead;
  const int64_t parts =
      (static_cast<int64_t>(place.n) * net.num_heads + c / net.head_dim) * net.max_chunks;
  const float* partial = net.partials + parts * size;
  if (chunks == 0) return 0.0f;
  float largest = to.get(partial);
#pragma unroll 4
  for (int chunk = 1; chunk < chunks; ++chunk) {
    largest = fmaxf(largest, to.get(partial + chunk * size));
  }
  float total = 0.0f, sum = 0.0f;
#pragma unroll 4
  for (int chunk = 0; chunk < chunks; ++chunk) {
    const float* at = partial + chunk * size;
    const float scale = exponential(to.get(at) - largest);
    total = fmaf(scale, to.get(at + 1), total);
    sum = fmaf(scale, to.get(at + kPartialHead + c % net.head_dim), sum);
  }
  return sum / total;
}

}  // namespace vqvae2_fast::cuda::sampler
