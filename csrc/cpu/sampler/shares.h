// Who does what in the pixel phase: the panels, channels and heads of each thread.
#pragma once

#include <vector>

#include "../threads/team.h"
#include "plan.h"

namespace vqvae2_fast::cpu::sampler {

// Which panels of several matrices a thread takes.
using Split = std::vector<std::vector<Range>>;  // [matrix][thread]

// Contiguous shares of panels, equal in cost: cost[m] is that of one panel of matrix m.
Split split_panels(const std::vector<int64_t>& panels, const std::vector<int64_t>& cost,
                   int threads);
std::vector<Range> split_evenly(int64_t count, int threads);

// Work of each of so many threads in each stage, by cost.
struct Shares {
  // rows: of the network.
  Shares(const Plan& plan, int64_t rows, int threads);

  int threads;
  Split of_convolutions;  // conv1 and conv2 of every layer, alternating
  Split of_conv1, of_conv2, of_merge, of_first, of_second, of_third, of_out_first, of_out_second;
  Split of_output_first, of_output_second, of_head;
  std::vector<Range> of_channels, of_heads;
};

}  // namespace vqvae2_fast::cpu::sampler
