// Torch's threads for kernels, on the stable ABI.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <functional>
#include <new>

#include "../cpu/float_mode.h"

namespace vqvae2_fast {
namespace {

// `torch::stable::parallel_for`, which would only say that it failed if a thread found no memory.
template <class Part>
void parallel_for(int64_t begin, int64_t end, int64_t grain, const Part& part) {
  std::atomic<bool> has_memory{true};
  torch::stable::parallel_for(begin, end, grain, [&](int64_t first, int64_t last) {
    try {
      part(first, last);
    } catch (const std::bad_alloc&) {
      has_memory = false;
    }
  });
  STD_TORCH_CHECK(
      has_memory,
      "vqvae2_fast: a thread of a kernel can't allocate memory for its intermediate values: "
      "use a smaller batch, or fewer threads (torch.set_num_threads).");
}

// As a `RunParts` of csrc/cpu, each part in the mode of DefaultFloats.
inline void run_parts(int64_t count, const std::function<void(int64_t, int64_t)>& part) {
  parallel_for(0, count, 1, [&part](int64_t first, int64_t last) {
    const cpu::DefaultFloats mode;
    part(first, last);
  });
}

}  // namespace
}  // namespace vqvae2_fast
