#include "shares.h"

#include <algorithm>

namespace vqvae2_fast::cpu::sampler {
namespace {

// The cost of a panel in addition to its inputs: the tile's start and end, and the functions after
// it.
constexpr int64_t kPanelCost = 32;

Split split_of(std::initializer_list<const Matrices*> matrices, int threads) {
  std::vector<int64_t> panels, cost;
  for (const Matrices* m : matrices) {
    panels.push_back(m->panels);
    cost.push_back(m->inputs + kPanelCost);
  }
  return split_panels(panels, cost, threads);
}

Split split_convolutions(const std::vector<const Convolutions*>& convolutions, const Taps& taps,
                         int threads) {
  std::vector<int64_t> panels, cost;
  for (const Convolutions* c : convolutions) {
    panels.push_back(c->panels);
    cost.push_back(taps.num_current * c->channels + kPanelCost);
  }
  return split_panels(panels, cost, threads);
}

}  // namespace

Split split_panels(const std::vector<int64_t>& panels, const std::vector<int64_t>& cost,
                   int threads) {
  int64_t total = 0;
  for (size_t m = 0; m < panels.size(); ++m) total += panels[m] * cost[m];
  Split split(panels.size(), std::vector<Range>(threads));
  int64_t done = 0;
  for (size_t m = 0; m < panels.size(); ++m) {
    int64_t begin = 0;
    for (int t = 0; t < threads; ++t) {
      // Panels that start before this thread's share of the cost ends.
      const int64_t share_end = total * (t + 1) / threads;
      const int64_t wanted = (share_end - done + cost[m] - 1) / cost[m];
      const int64_t end = t + 1 == threads ? panels[m] : std::clamp(wanted, begin, panels[m]);
      split[m][t] = {begin, end};
      begin = end;
    }
    done += panels[m] * cost[m];
  }
  return split;
}

std::vector<Range> split_evenly(int64_t count, int threads) {
  std::vector<Range> ranges(threads);
  for (int t = 0; t < threads; ++t) ranges[t] = {count * t / threads, count * (t + 1) / threads};
  return ranges;
}

Shares::Shares(const Plan& plan, int64_t rows, int threads_) : threads(threads_) {
  if (plan.attention.num_heads > 0) {
    const Attention& a = plan.attention;
    of_first = split_of({&a.key.first, &a.query.first}, threads);
    of_second = split_of({&a.key.second, &a.query.second}, threads);
    of_third = split_of({&a.query_weight, &a.key_value_weight}, threads);
    of_out_first = split_of({&a.out.first}, threads);
    of_out_second = split_of({&a.out.second}, threads);
    of_heads = split_evenly(rows * a.num_heads, threads);
  } else {
    of_merge = split_of({&plan.merge}, threads);
  }
  if (plan.num_output_layers > 0) {
    of_output_first = split_of({&plan.output.first}, threads);
    of_output_second = split_of({&plan.output.second}, threads);
  }
  of_head = split_of({&plan.head}, threads);
  std::vector<const Convolutions*> all;
  for (int64_t n = 0; n < plan.num_layers; ++n) all.insert(all.end(), {&plan.conv1, &plan.conv2});
  of_convolutions = split_convolutions(all, plan.taps, threads);
  of_conv1 = split_convolutions({&plan.conv1}, plan.taps, threads);
  of_conv2 = split_convolutions({&plan.conv2}, plan.taps, threads);
  // In whole panels, so that no two threads write to one cache line.
  of_channels = split_evenly(plan.channels / kPanel, threads);
  for (Range& range : of_channels) range = {range.begin * kPanel, range.end * kPanel};
}

}  // namespace vqvae2_fast::cpu::sampler
