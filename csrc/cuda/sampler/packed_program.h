// A plan in one piece of memory: this head, then the arrays that the kernel reads.
#pragma once

#include "planner.h"

namespace vqvae2_fast::cuda::sampler {

struct PackedProgram {
  Program program;
  RowPhase row_phase;
  int32_t weight_bytes;
};

}  // namespace vqvae2_fast::cuda::sampler
