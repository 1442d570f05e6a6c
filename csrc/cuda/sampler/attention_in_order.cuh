// Attention in the order in which engine `cpu` adds (csrc/cpu/sampler/elementwise-inl.h), for
// engine `cuda_w8a8`, whose bits are the CPU's. A block computes one head of one step row: the
// order is that of all positions, and leaves no partial results for other blocks.
#pragma once

#include "../../common/counter_noise.h"
#include "attention.cuh"

namespace vqvae2_fast::cuda::sampler {

constexpr int kScoreBlock = 128;  // inputs that a score adds at a time
constexpr int kWeightLanes = 16;  // in which weights are added

// Shared memory of a head: weights of all positions, sums of each chain, the query, and a word for
// each warp.
struct HeadScratch {
  float *weights, *sums, *query, *of_warps;
};

__device__ __forceinline__ HeadScratch head_scratch(float* memory, const Network& net) {
  float* const sums = memory + net.height * net.width;
  float* const query = sums + kValueChains * net.head_dim;
  return {.weights = memory, .sums = sums, .query = query, .of_warps = query + net.head_dim};
}

// ELU of a head's attended values joins the inputs of the attention's last layer. All threads of a
// block call it.
__device__ __forceinline__ void attend_in_order(const Network& net, Place place, int block,
                                                int head, HeadScratch s) {
  const int dim = net.head_dim, before = place.i * net.width + place.j;
  const int lane = threadIdx.x % kLanes, threads = blockDim.x;
  float* out =
      net.out_inputs + static_cast<int64_t>(place.r) * net.out_stride + net.channels + head * dim;
  if (before == 0) {
    for (int c = threadIdx.x; c < dim; c += threads) out[c] = 0.0f;
    return;
  }
  const int64_t positions = (net.height * net.width + kLanes - 1) / kLanes * kLanes;
  const int64_t cached =
      ((static_cast<int64_t>(block) * net.rows + place.n) * net.num_heads + head) * positions * dim;
  const float* query = net.query + (place.r * net.num_heads + head) * dim;
  for (int c = threadIdx.x; c < dim; c += threads) s.query[c] = fresh(query + c);
  __syncthreads();  // the query is there

  float largest = -INFINITY;
  for (int p = threadIdx.x; p < before; p += threads) {
    const float* key = net.keys + cached + static_cast<int64_t>(p / kLanes) * kLanes * dim + lane;
    float score = 0.0f;
    for (int first = 0; first < dim; first += kScoreBlock) {
      float sum = 0.0f;
#pragma unroll 8
      for (int c = first; c < min(dim, first + kScoreBlock); ++c) {
        sum = fmaf(s.query[c], fresh(key + c * kLanes), sum);
      }
      score += sum;
    }
    s.weights[p] = score;
    largest = fmaxf(largest, score);
  }
  largest = warp_max(largest);
  if (lane == 0) s.of_warps[threadIdx.x / kLanes] = largest;
  __syncthreads();  // the largest of each warp is there
  largest = s.of_warps[0];
  for (int w = 1; w < threads / kLanes; ++w) largest = fmaxf(largest, s.of_warps[w]);
  for (int p = threadIdx.x; p < before; p += threads) {
    s.weights[p] = exponential(s.weights[p] - largest);
  }
  __syncthreads();  // the weights are there

  const float* values = net.values + cached;
  for (int item = threadIdx.x; item < kValueChains * dim; item += threads) {
    const int chain = item / dim, c = item % dim;
    float sum = 0.0f;
#pragma unroll kValuesAtOnce
    for (int p = chain; p < before; p += kValueChains) {
      sum = fmaf(s.weights[p], fresh(values + static_cast<int64_t>(p) * dim + c), sum);
    }
    s.sums[item] = sum;
  }
  // Every warp adds the weights for itself.
  float total = 0.0f;
  if (lane < kWeightLanes) {
    for (int p = lane; p < before; p += kWeightLanes) total += s.weights[p];
  }
#pragma unroll
  for (int half = kWeightLanes / 2; half > 0; half /= 2) {
    total += __shfl_down_sync(0xFFFFFFFFu, total, half);
  }
  const float scale = 1.0f / __shfl_sync(0xFFFFFFFFu, total, 0);
  __syncthreads();  // the sums are there
  for (int c = threadIdx.x; c < dim; c += threads) {
    const float* sum = s.sums + c;
    out[c] = elu(VQ_MUL((sum[0] + sum[dim]) + (sum[2 * dim] + sum[3 * dim]), scale));
  }
}

}  // namespace vqvae2_fast::cuda::sampler
