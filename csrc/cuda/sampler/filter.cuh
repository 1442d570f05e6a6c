// Top-k and top-p of a draw, by a block's first threads: a radix select over the codes in the order
// of the rule, logit descending and index ascending. What it sums are integers, so nothing depends
// on the order of additions or on the number of threads.
#pragma once

#include "attention.cuh"

namespace vqvae2_fast::cuda::sampler {

constexpr int kDigitBits = 8, kDigits = 1 << kDigitBits;
constexpr int kDigitsOfLane = kDigits / kLanes;
// Seven digits: one of the distance to the largest logit, four of the logit, two of the index.
// Shared memory holds far fewer than 2^16 codes.
constexpr int kKeyBits = 7 * kDigitBits;
static_assert(kFilterWords == 3 * (kDigits + kLanes));

// How many of the candidates have each digit, and the sums of their weights in two words.
struct Bins {
  uint32_t *counts, *low, *high;
};

// Where a digit's words lie. A lane reads eight neighbours; one word between lanes keeps them in
// different banks.
__device__ __forceinline__ int bin_of(uint32_t digit) {
  return static_cast<int>(digit + digit / kDigitsOfLane);
}

// Adds to a sum of two words, in whatever order: shared memory adds words by itself, but pairs of
// them only in a loop of compare and swap.
__device__ __forceinline__ void add_weight(Bins bins, int bin, uint64_t weight) {
  const uint32_t part = static_cast<uint32_t>(weight);
  const uint32_t old = atomicAdd(bins.low + bin, part);
  const uint32_t rest = static_cast<uint32_t>(weight >> 32) + (old + part < old);
  if (rest != 0) atomicAdd(bins.high + bin, rest);
}

// x * 2^exponent as an integer, without what lies below 1; 0 for NaN. Exact for x >= 2^(23 -
// exponent).
template <int kExponent>
__device__ __forceinline__ uint64_t fixed_point(float x) {
  constexpr float kScale = static_cast<float>(uint64_t{1} << kExponent);
  return x > 0.0f ? static_cast<uint64_t>(x * kScale) : 0;
}

// A code's place in the order as an integer, larger for those that come first.
__device__ __forceinline__ uint64_t order_key(float logit, int k, float largest) {
  // Eighths below the largest logit come first, because they spread the codes over the bins; by the
  // first bits of a float most of them would meet in a few. Rounding keeps the order.
  const float below = 8.0f * (largest - logit);
  const uint32_t eighths = below < kDigits - 1 ? static_cast<uint32_t>(below) : kDigits - 1;
  // Zeros of both signs are equal; the larger the bits of a negative number, the smaller it is.
  const int32_t bits = __float_as_int(VQ_ADD(logit, 0.0f));
  const uint32_t ordered = static_cast<uint32_t>(bits ^ (bits >> 31 | INT32_MIN));
  return static_cast<uint64_t>(kDigits - 1 - eighths) << 48 | static_cast<uint64_t>(ordered) << 16 |
         static_cast<uint64_t>(0xFFFF - k);
}

// The digit in which the sum of weights, from the largest digit down, first is enough, for the
// first warp. `before` is the sum of larger keys. Writes the digit, how many candidates have it,
// and the sum of all before it to found[0 .. 4); a count of 0 if there is no such digit. Clears the
// bins.
template <bool kWeighted, typename Enough>
__device__ __forceinline__ void find_digit(Bins bins, uint64_t before, const Enough& enough,
                                           uint32_t* found) {
  const int lane = threadIdx.x;
  const uint32_t first = kDigits - 1 - kDigitsOfLane * lane;
  const auto weight = [&](uint32_t digit) {
    const int bin = bin_of(digit);
    if constexpr (!kWeighted) return static_cast<uint64_t>(bins.counts[bin]);
    return static_cast<uint64_t>(bins.high[bin]) << 32 | bins.low[bin];
  };
  uint64_t own = 0;
#pragma unroll
  for (int d = 0; d < kDigitsOfLane; ++d) own += weight(first - d);
  uint64_t through = own;  // by this lane and those before it
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) {
    const uint64_t other = __shfl_up_sync(0xFFFFFFFFu, through, step);
    if (lane >= step) through += other;
  }
  uint64_t sum = before + through - own;
  if (enough(sum + own)) {
    if (!enough(sum)) {
      uint32_t digit = first;
      while (!enough(sum + weight(digit))) sum += weight(digit--);
      found[0] = digit;
      found[1] = bins.counts[bin_of(digit)];
      found[2] = static_cast<uint32_t>(sum);
      found[3] = static_cast<uint32_t>(sum >> 32);
    }
  } else if (lane == kLanes - 1) {
    found[1] = 0;
  }
#pragma unroll
  for (int d = 0; d < kDigitsOfLane; ++d) {
    const int bin = bin_of(first - d);
    bins.counts[bin] = 0;
    if constexpr (kWeighted) bins.low[bin] = bins.high[bin] = 0;
  }
}

// The key of the first code in the order with which the sum of weights is enough, or a lower bound
// of it above the next code's; 0 if all codes are not enough. `bins` are clear, before and after.
template <bool kWeighted, typename Weight, typename Enough>
__device__ __forceinline__ uint64_t select_key(const float* logits, int count, float largest,
                                               Bins bins, uint32_t* found, int threads,
                                               const Weight& weight, const Enough& enough) {
  uint64_t prefix = 0, before = 0;
  for (int shift = kKeyBits - kDigitBits;; shift -= kDigitBits) {
    for (int k = threadIdx.x; k < count; k += threads) {
      const uint64_t key = order_key(logits[k], k, largest);
      if (key >> shift >> kDigitBits != prefix) continue;
      const int bin = bin_of(key >> shift & (kDigits - 1));
      atomicAdd(bins.counts + bin, 1);
      if constexpr (kWeighted) add_weight(bins, bin, weight(logits[k]));
    }
    sync_first(threads);  // all are counted
    if (threadIdx.x < kLanes) find_digit<kWeighted>(bins, before, enough, found);
    sync_first(threads);  // the digit is found
    const uint32_t codes = found[1];
    if (codes == 0) return 0;
    prefix = prefix << kDigitBits | found[0];
    before = static_cast<uint64_t>(found[3]) << 32 | found[2];
    if (codes == 1 || shift == 0) return prefix << shift;
  }
}

// Sum over all `threads`, for each; `low` and `high` have a word for each warp.
__device__ __forceinline__ uint64_t block_sum(uint64_t value, uint32_t* low, uint32_t* high,
                                              int threads) {
#pragma unroll
  for (int step = kLanes / 2; step > 0; step /= 2) {
    value += __shfl_xor_sync(0xFFFFFFFFu, value, step);
  }
  if (threadIdx.x % kLanes == 0) {
    low[threadIdx.x / kLanes] = static_cast<uint32_t>(value);
    high[threadIdx.x / kLanes] = static_cast<uint32_t>(value >> 32);
  }
  sync_first(threads);
  value = 0;
  for (int w = 0; w < threads / kLanes; ++w) {
    value += static_cast<uint64_t>(high[w]) << 32 | low[w];
  }
  sync_first(threads);
  return value;
}

// Sets the logits that the rule's filters leave out to -infinity. `largest` is the largest of them;
// `memory` has kFilterWords words, `low` and `high` one for each warp, and four at least.
//
// Probabilities are float32, exponential / total; their cumulative sum is exact, to 2^-62, and is
// rounded to float32 once, as torch.cumsum adds in double. Added one by one in float32 it would
// miss, among equal logits, codes that the reference keeps.
__device__ __forceinline__ void keep(const Rule& rule, float* logits, int count, float largest,
                                     uint32_t* memory, uint32_t* low, uint32_t* high, int threads) {
  constexpr int kWords = kFilterWords / 3;
  const Bins bins = {.counts = memory, .low = memory + kWords, .high = memory + 2 * kWords};
  for (int word = threadIdx.x; word < kFilterWords; word += threads) memory[word] = 0;
  sync_first(threads);
  // A thread reads and writes the same logits throughout.
  const auto drop_below = [&](uint64_t least) {
    for (int k = threadIdx.x; k < count; k += threads) {
      if (order_key(logits[k], k, largest) < least) logits[k] = -INFINITY;
    }
  };
  if (rule.top_k < count) {
    const auto enough = [&](uint64_t codes) { return codes >= static_cast<uint32_t>(rule.top_k); };
    drop_below(select_key<false>(
        logits, count, largest, bins, low, threads, [](float) { return uint64_t{1}; }, enough));
    sync_first(threads);  // what was found is read
  }
  if (rule.top_p < 1.0f) {
    constexpr int kSumBits = 47, kProbabilityBits = 62;  // 2^16 codes do not overflow
    // What top-k left out has e^-87, which is 0 in these units.
    const auto weight = [&](float logit) { return exponential(logit - largest); };
    uint64_t sum = 0;
    for (int k = threadIdx.x; k < count; k += threads) {
      sum += fixed_point<kSumBits>(weight(logits[k]));
    }
    constexpr float kUnit = 1.0f / static_cast<float>(uint64_t{1} << kSumBits);
    const float total = static_cast<float>(block_sum(sum, low, high, threads)) * kUnit;
    const float wanted = rule.top_p * static_cast<float>(uint64_t{1} << kProbabilityBits);
    drop_below(select_key<true>(
        logits, count, largest, bins, low, threads,
        [&](float logit) { return fixed_point<kProbabilityBits>(weight(logit) / total); },
        [&](uint64_t cumulative) {
          return cumulative > 0 && static_cast<float>(cumulative) >= wanted;
        }));
  }
  sync_first(threads);
}

}  // namespace vqvae2_fast::cuda::sampler
