#include "sampler.h"

#include <chrono>

#include "../kernels.h"

namespace vqvae2_fast::cpu::sampler {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

}  // namespace

Timing draw_map(const Plan& plan, const Request& request,
                const std::function<bool(int64_t)>& after_row) {
  Timing timing;
  Team team(request.threads);
  State state(plan, request, kernels(), team);
  const auto start = Clock::now();
  compute_features(state);
  timing.condition = seconds_since(start);
  bool stopped = false;
  team.run([&](int thread) {
    for (int64_t i = 0; i < plan.height && !stopped; ++i) {
      const auto row_start = Clock::now();
      row_phase(state, i);
      const auto pixels_start = Clock::now();
      pixel_phase(state, thread, i);
      if (thread == 0) {
        timing.rows += std::chrono::duration<double>(pixels_start - row_start).count();
        timing.pixels += seconds_since(pixels_start);
        stopped = !after_row(i + 1);
      }
      team.barrier();
    }
  });
  timing.steps = state.steps;
  return timing;
}

int64_t cache_bytes(const Plan& plan, int64_t batch, bool guided) {
  Request request;
  request.batch = batch;
  request.guided = guided;
  Team team(1);
  const State state(plan, request, kernels(), team);
  int64_t size = 0;
  for (const Buffer* buffer : {&state.ring1.memory, &state.ring2.memory, &state.out1, &state.out2,
                               &state.features, &state.of_condition, &state.keys, &state.values}) {
    size += buffer->size();
  }
  return size * static_cast<int64_t>(sizeof(float));
}

}  // namespace vqvae2_fast::cpu::sampler
