// From logits to a code, by a block's threads and the rule of
// vqvae2_fast/ops/draw_codes/op.py. logits -> guidance -> / temperature -> top-k -> top-p ->
// + Gumbel noise -> argmax, lowest index on ties. No step depends on the number of threads.
#pragma once

#include "../../common/counter_noise.h"
#include "filter.cuh"
#include "memory.cuh"

namespace vqvae2_fast::cuda::sampler {

// Scratch in shared memory, K words each unless it says so.
struct DrawScratch {
  float *raw, *logits;
  float* scores;  // K or kFilterWords words: the filters' memory before the scores
  float* sums;    // kLanes floats
  int* codes;     // kLanes ints
  int threads;    // that draw: the block's first, whole warps
};

// Its parts; `memory` has 2 K + max(K, kFilterWords) + 2 kLanes words.
__device__ __forceinline__ DrawScratch draw_scratch(float* memory, int num_embeddings,
                                                    int threads) {
  float* const scores = memory + 2 * num_embeddings;
  float* const sums = scores + max(num_embeddings, kFilterWords);
  return {.raw = memory,
          .logits = memory + num_embeddings,
          .scores = scores,
          .sums = sums,
          .codes = reinterpret_cast<int*>(sums + kLanes),
          .threads = threads};
}

// Sum of values[0..count) by the first warp, in a fixed order: every 32nd value, then halves.
template <typename Value>
__device__ __forceinline__ float first_warp_sum(int count, const Value& value) {
  float sum = 0.0f;
  for (int k = threadIdx.x; k < count; k += kLanes) sum += value(k);
  return warp_sum(sum);
}

__device__ __forceinline__ float block_max(const float* values, int count, DrawScratch s) {
  float largest = -INFINITY;
  for (int k = threadIdx.x; k < count; k += s.threads) largest = fmaxf(largest, values[k]);
  largest = warp_max(largest);
  if (threadIdx.x % kLanes == 0) s.sums[threadIdx.x / kLanes] = largest;
  sync_first(s.threads);
  largest = s.sums[0];
  for (int w = 1; w < s.threads / kLanes; ++w) {
    largest = fmaxf(largest, s.sums[w]);
  }
  sync_first(s.threads);
  return largest;
}

// Index of the largest value, the lowest one on ties.
__device__ __forceinline__ int block_argmax(const float* values, int count, DrawScratch s) {
  constexpr unsigned kAll = 0xFFFFFFFFu;
  float best = -INFINITY;
  int code = 0x7FFFFFFF;
  for (int k = threadIdx.x; k < count; k += s.threads) {
    if (values[k] > best) {
      best = values[k];
      code = k;
    }
  }
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(kAll, best, step);
    const int other_code = __shfl_xor_sync(kAll, code, step);
    if (other > best || (other == best && other_code < code)) {
      best = other;
      code = other_code;
    }
  }
  if (threadIdx.x % kLanes == 0) {
    s.sums[threadIdx.x / kLanes] = best;
    s.codes[threadIdx.x / kLanes] = code;
  }
  sync_first(s.threads);
  best = s.sums[0];
  code = s.codes[0];
  for (int w = 1; w < s.threads / kLanes; ++w) {
    if (s.sums[w] > best || (s.sums[w] == best && s.codes[w] < code)) {
      best = s.sums[w];
      code = s.codes[w];
    }
  }
  sync_first(s.threads);
  return code == 0x7FFFFFFF ? 0 : code;  // nothing but NaN or -infinity
}

// Sets what the filters leave out of s.logits to -infinity.
__device__ __forceinline__ void filter(const Network& net, DrawScratch s) {
  const int count = net.num_embeddings;
  if (net.rule.top_k >= count && net.rule.top_p >= 1.0f) return;
  keep(net.rule, s.logits, count, block_max(s.logits, count, s),
       reinterpret_cast<uint32_t*>(s.scores), reinterpret_cast<uint32_t*>(s.sums),
       reinterpret_cast<uint32_t*>(s.codes), s.threads);
}

// log softmax of s.raw at `code`.
__device__ __forceinline__ float log_probability(const Network& net, int code, DrawScratch s) {
  const float largest = block_max(s.raw, net.num_embeddings, s);
  if (threadIdx.x >= kLanes) return 0.0f;
  const float total =
      first_warp_sum(net.num_embeddings, [&](int k) { return exponential(s.raw[k] - largest); });
  return (s.raw[code] - largest) - fixed_log(total);
}

// scores = logits + noise of the position.
__device__ __forceinline__ void add_noise(const Network& net, int sample, int position,
                                          DrawScratch s) {
  const int count = net.num_embeddings;
  if (net.noise) {
    const int64_t at = static_cast<int64_t>(sample) * net.height * net.width + position;
    for (int k = threadIdx.x; k < count; k += s.threads) {
      s.scores[k] = s.logits[k] + net.noise[at * count + k];
    }
    return;
  }
  for (int counter = threadIdx.x; 4 * counter < count; counter += s.threads) {
    const Words4 words = philox4x32(static_cast<uint32_t>(counter), static_cast<uint32_t>(position),
                                    static_cast<uint32_t>(net.first_sample + sample),
                                    net.stream | kPurposeDraw << 16, net.seed);
    for (int w = 0; w < 4; ++w) {
      const int k = 4 * counter + w;
      if (k < count) s.scores[k] = VQ_ADD(s.logits[k], gumbel_from_word(words.w[w]));
    }
  }
}

// Draws and returns the code at a place of network row and sample place.n. All threads that
// draw call it.
template <class To>
__device__ __forceinline__ int draw_code(const Network& net, Place place, DrawScratch s,
                                         const To& to) {
  const int count = net.num_embeddings, sample = place.n;
  const int position = place.i * net.width + place.j;
  const int64_t at = static_cast<int64_t>(sample) * net.height * net.width + position;
  const float* logits = net.logits + static_cast<int64_t>(place.n) * net.code_stride;
  const float* without = logits + static_cast<int64_t>(net.batch) * net.code_stride;
  const bool guided = net.rows > net.batch;
  for (int k = threadIdx.x; k < count; k += s.threads) {
    const float raw = to.get(logits + k);
    float value = raw;
    bool fits = fabsf(raw) <= net.rule.largest_logit;
    if (guided) {
      const float base = to.get(without + k);
      fits = fits && fabsf(base) <= net.rule.largest_logit;
      value = VQ_ADD(base, VQ_MUL(net.rule.guidance, VQ_ADD(raw, -base)));
    }
    if (net.rule.temperature != 0.0f && net.rule.temperature != 1.0f) {
      value = value / net.rule.temperature;
    }
    if (!fits && to.writes_global()) note_invalid(net);
    s.raw[k] = raw;
    s.logits[k] = value;
    if (net.all_logits && to.writes_global()) net.all_logits[at * count + k] = raw;
  }
  sync_first(s.threads);
  int code = net.known ? static_cast<int>(net.known[at]) : -1;
  if (code < 0) {
    if (net.rule.temperature == 0.0f) {
      code = block_argmax(s.logits, count, s);
    } else {
      filter(net, s);
      add_noise(net, sample, position, s);
      sync_first(s.threads);
      code = block_argmax(s.scores, count, s);
    }
  }
  if (threadIdx.x == 0 && to.writes_global()) net.codes[at] = code;
  if (net.log_prob && to.writes_global()) {
    const float value = log_probability(net, code, s);
    if (threadIdx.x == 0) net.log_prob[at] = value;
  }
  sync_first(s.threads);
  return code;
}

}  // namespace vqvae2_fast::cuda::sampler
