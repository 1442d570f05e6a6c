// The part of the C interface that needs no card: planning.
#include <string.h>

#include <exception>
#include <string>

#include "packed_program.h"
#include "sampler.h"

namespace vqvae2_fast::cuda::sampler {
namespace {

// Calls function(); returns the text of an exception, or null.
template <typename Function>
const char* caught(const Function& function) {
  static thread_local std::string error;
  try {
    function();
  } catch (const std::exception& thrown) {
    error = thrown.what();
    return error.c_str();
  }
  return nullptr;
}

template <typename T>
int64_t bytes_of(const std::vector<T>& items) {
  return static_cast<int64_t>(items.size() * sizeof(T));
}

}  // namespace
}  // namespace vqvae2_fast::cuda::sampler

using namespace vqvae2_fast::cuda::sampler;

const char* vq_sampler_sizes(const char* const* names, const int64_t* values, int64_t count,
                             int64_t sizes[5]) {
  return caught([&] {
    const Plan plan(Values(names, values, count));
    sizes[0] = plan.workspace_bytes;
    sizes[1] = sizeof(PackedProgram) + bytes_of(plan.blocks) + bytes_of(plan.steps) +
               bytes_of(plan.works) + bytes_of(plan.chain_blocks) + bytes_of(plan.chain_steps) +
               bytes_of(plan.chain_works) + bytes_of(plan.chain_copies);
    sizes[2] = plan.program.grid;
    sizes[3] = plan.program.num_stages;
    sizes[4] = plan.program.shared_bytes;
  });
}

const char* vq_sampler_program(const char* const* names, const int64_t* values, int64_t count,
                               void* program) {
  return caught([&] {
    const Plan plan(Values(names, values, count));
    unsigned char* const start = static_cast<unsigned char*>(program);
    unsigned char* next = start + sizeof(PackedProgram);
    const auto append = [&](const auto& items) {
      if (!items.empty()) memcpy(next, items.data(), bytes_of(items));
      next += bytes_of(items);
      return next - bytes_of(items) - start;
    };
    PackedProgram packed = {plan.program, plan.row_phase, plan.weight_bytes};
    // Those that hold addresses come first.
    Chain& chain = packed.program.chain;
    packed.program.works_offset = append(plan.works);
    chain.works_offset = append(plan.chain_works);
    chain.copies_offset = append(plan.chain_copies);
    chain.steps_offset = append(plan.chain_steps);
    chain.blocks_offset = append(plan.chain_blocks);
    packed.program.steps_offset = append(plan.steps);
    packed.program.blocks_offset = append(plan.blocks);
    memcpy(start, &packed, sizeof(packed));
  });
}

#if defined(VQ_STAGE_TIMES)
int32_t vq_sampler_moments() { return kMoments; }

const char* vq_sampler_stages(const char* const* names, const int64_t* values, int64_t count,
                              char* text, int64_t size) {
  return caught([&] {
    std::string lines = "name;wait_stage;wait_before\n";
    for (const Stage& stage : Plan(Values(names, values, count)).stages) {
      lines += std::string(stage.name) + ";" + std::to_string(stage.wait_stage) + ";" +
               std::to_string(stage.wait_before) + "\n";
    }
    if (static_cast<int64_t>(lines.size()) >= size) {
      throw std::invalid_argument("sampler: no room for the table.");
    }
    memcpy(text, lines.c_str(), lines.size() + 1);
  });
}
#endif
