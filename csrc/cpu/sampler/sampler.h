// Draws a whole code map in one call: the C++ engine of vqvae2_fast/sampling/engines/cpu.py.
#pragma once

#include <functional>

#include "plan.h"
#include "state.h"

namespace vqvae2_fast::cpu::sampler {

// Where the time of a draw went, seconds of the calling thread; the steps of its pixel phases; how
// many inputs it clamped to int8; and whether logits were beyond the rule's largest.
struct Timing {
  double condition = 0, rows = 0, pixels = 0;
  int64_t steps = 0, clamped = 0;
  bool too_large = false;
};

// Draws the codes of `request`. All threads draw each position together, or each draws samples of
// its own: whichever is faster, the bits are the same. after_row(rows done) is called on the
// calling thread after each row. If it returns false, the draw stops; the finished rows stay in
// request.codes.
Timing draw_map(const Plan& plan, const Request& request,
                const std::function<bool(int64_t)>& after_row);

// Bytes that a draw keeps from one code to the next, counted from what it allocates.
int64_t cache_bytes(const Plan& plan, int64_t batch, bool guided);

}  // namespace vqvae2_fast::cpu::sampler
