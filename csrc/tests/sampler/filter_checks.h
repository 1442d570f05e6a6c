// Top-k and top-p of the CUDA sampler against a stable sort on the host.
//
// The host's exponentials are rounded from double, so a cumulative probability within kNearTie of
// top_p may be decided either way; among equal logits, whose exponentials are all 1, none may.
#pragma once

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>

#include "../../cuda/sampler/draw.cuh"
#include "../cuda_on_cpu/device_array.h"

namespace sampler_test {

namespace kernels = vqvae2_fast::cuda::sampler;

// Twice the rounding of a probability and of its total, summed over at most all of them.
constexpr double kNearTie = 1e-6;

// Filters each of a map's rows of logits in place, one block per row.
__global__ void filter_kernel(const kernels::Network net, float* logits) {
  VQ_DYNAMIC_SHARED(float, memory);
  const int count = net.num_embeddings;
  const kernels::DrawScratch scratch = kernels::draw_scratch(memory, count, blockDim.x);
  float* const row = logits + static_cast<int64_t>(blockIdx.x) * count;
  for (int k = threadIdx.x; k < count; k += blockDim.x) scratch.logits[k] = row[k];
  __syncthreads();
  kernels::filter(net, scratch);
  for (int k = threadIdx.x; k < count; k += blockDim.x) row[k] = scratch.logits[k];
}

struct FilterCase {
  const char* name;
  std::vector<float> logits;
  int top_k;  // 0: all
  float top_p;
  bool near_ties;  // may differ from the host's by rounding
};

inline std::vector<float> filtered(const FilterCase& c, int threads) {
  const int count = static_cast<int>(c.logits.size());
  kernels::Network net = {};
  net.num_embeddings = count;
  net.rule.top_k = c.top_k == 0 ? count : c.top_k;
  net.rule.top_p = c.top_p;
  cuda_test::DeviceArray<float> logits(c.logits);
  cuda_test::LaunchShape shape;
  shape.grid = dim3(1);
  shape.block = dim3(threads);
  shape.shared_bytes = static_cast<int>(sizeof(float)) *
                       (2 * count + std::max(count, kernels::kFilterWords) + 2 * kernels::kLanes);
  cuda_test::must(cuda_test::launch("filter", filter_kernel, shape, net, logits.data()));
  return logits.values();
}

// Whether `kept` are the first codes in the order of the rule, as many as the rule keeps.
inline bool as_the_rule_says(const FilterCase& c, const std::vector<float>& kept) {
  const int count = static_cast<int>(c.logits.size());
  std::vector<int> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return c.logits[a] > c.logits[b]; });
  const int most = c.top_k == 0 ? count : std::min(c.top_k, count);
  const auto exponential = [&](int rank) {
    return static_cast<float>(
        std::exp(static_cast<double>(c.logits[order[rank]]) - c.logits[order[0]]));
  };
  double total = 0;
  for (int rank = 0; rank < most; ++rank) total += exponential(rank);
  // As many codes as it takes to reach p.
  const auto number = [&](double p) {
    double sum = 0;
    int rank = 0;
    while (rank < most && (rank == 0 || static_cast<float>(sum) < p)) {
      sum += exponential(rank++) / static_cast<float>(total);
    }
    return rank;
  };
  const double slack = c.near_ties ? kNearTie : 0;
  const int least = c.top_p < 1 ? number(c.top_p - slack) : most;
  const int largest = c.top_p < 1 ? number(c.top_p + slack) : most;
  int rank = 0;
  while (rank < count && kept[order[rank]] == c.logits[order[rank]] &&
         (kept[order[rank]] > -INFINITY || rank < least)) {
    ++rank;
  }
  const bool enough = rank >= least && rank <= largest;
  for (; rank < count; ++rank) {
    if (kept[order[rank]] != -INFINITY) return false;
  }
  return enough;
}

// Logits with a spread, of which many are equal if `steps` is not 0.
inline std::vector<float> some_logits(int count, float spread, int steps = 0) {
  std::vector<float> logits(count);
  uint32_t state = 7u * count + steps;
  for (float& logit : logits) {
    state = state * 1664525u + 1013904223u;
    const float x = static_cast<float>(state >> 8) / (1 << 23) - 1.0f;
    logit = spread * (steps == 0 ? x * x * x + x : std::round(x * steps) / steps);
  }
  return logits;
}

inline void test_filters(cuda_test::Checks& check, bool quick) {
  std::vector<float> zeros = {0.0f, -0.0f, 1.0f, 0.0f, -0.0f, -1.0f, -1e-40f, 1e-40f};
  std::vector<float> infinite = some_logits(70, 2.0f);
  for (int k = 0; k < 70; k += 3) infinite[k] = -INFINITY;
  const std::vector<float> equal(300, 0.25f), spread = some_logits(300, 6.0f);
  std::vector<FilterCase> cases = {
      {"equal logits, top-k", equal, 45, 1.0f, false},
      {"equal logits, top-p", equal, 0, 0.7f, false},
      // The sum of 266 codes, 256 of them in one bin, reaches p only as it is rounded.
      {"equal logits, p between two codes", std::vector<float>(277, 1.0f), 0, 266 / 277.0f, false},
      {"both filters", spread, 120, 0.9f, true},
      {"many equal logits, top-k", some_logits(300, 2.0f, 3), 140, 1.0f, false},
      {"logits of minus infinity", infinite, 60, 0.99f, true},
      {"zeros of both signs", zeros, 4, 1.0f, false},
  };
  for (const int k : {1, 2, 37, 255, 299, 300}) {
    cases.push_back({"top-k", spread, k, 1.0f, false});
    cases.push_back({"many equal logits, top-k", some_logits(300, 1.0f, 2), k, 1.0f, false});
  }
  if (!quick) {
    for (const float p : {1e-30f, 1e-4f, 0.3f, 0.5f, 0.9f, 0.999f, 0.99999994f}) {
      cases.push_back({"top-p", spread, 0, p, true});
      cases.push_back({"top-p, narrow logits", some_logits(257, 1e-3f), 0, p, true});
      cases.push_back({"top-p, far logits", some_logits(61, 1e4f), 0, p, true});
      cases.push_back({"many equal logits, top-p", some_logits(300, 2.0f, 3), 200, p, true});
      cases.push_back({"one code", {3.0f}, 0, p, true});
    }
    for (int count = 3; count < 300; count += 37) {
      for (int j = 1; j < count; j += 1 + count / 8) {
        const std::vector<float> same(count, -3.0f);
        cases.push_back({"equal logits, p between two codes", same, 0,
                         static_cast<float>(j) / static_cast<float>(count), false});
      }
    }
  }
  for (const FilterCase& c : cases) {
    const std::vector<float> kept = filtered(c, 64);
    const std::string what = std::string(c.name) + ", top_k " + std::to_string(c.top_k) +
                             ", top_p " + std::to_string(c.top_p) + ", of " +
                             std::to_string(c.logits.size());
    check(as_the_rule_says(c, kept), ("filters keep what the rule says: " + what).c_str());
    if (quick) continue;
    const std::vector<float> other = filtered(c, 160);
    check(memcmp(kept.data(), other.data(), kept.size() * sizeof(float)) == 0,
          ("the same with other threads: " + what).c_str());
  }
  if (quick) return;
  // 226 KiB: no block of the sampler may have more.
  const int most = ((226 << 10) / static_cast<int>(sizeof(float)) - 2 * kernels::kLanes) / 3;
  const FilterCase large = {"many codes", some_logits(most, 4.0f), most / 2, 0.9f, true};
  check(as_the_rule_says(large, filtered(large, 512)), "as many codes as fit");
}

}  // namespace sampler_test
