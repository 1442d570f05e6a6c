// The part of the C interface that needs no card: planning.
#include <string.h>

#include <exception>
#include <string>

#include "cards.h"
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

const CardModel& known_card(const char* name) {
  if (const CardModel* const model = card_model(name)) return *model;
  throw std::invalid_argument(std::string("sampler: expected a card of a100, h100, b200, got ") +
                              name + ".");
}

// The plan of a draw. Which design is faster is decided by the H100's constants on every card.
Plan planned(const Values& values) { return best_plan(values, known_card("h100")); }

// Values with the size of a known card, where they give none.
Values on_card(Values values, const CardModel& card) {
  if (values.integer("card.blocks") == 0) {
    values.set("card.blocks", card.multiprocessors);
    values.set("card.shared_bytes", card.shared_bytes);
    values.set("card.clusters16", card.clusters16);
    values.set("card.clusters8", card.clusters8);
  }
  return values;
}

void write(const std::string& lines, char* text, int64_t size) {
  if (static_cast<int64_t>(lines.size()) >= size) {
    throw std::invalid_argument("sampler: no room for the table.");
  }
  memcpy(text, lines.c_str(), lines.size() + 1);
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
    const Plan plan = planned(Values(names, values, count));
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
    const Plan plan = planned(Values(names, values, count));
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

const char* vq_sampler_report(const char* const* names, const int64_t* values, int64_t count,
                              const char* card, char* text, int64_t size) {
  return caught([&] {
    const CardModel& model = known_card(card);
    const Plan plan = best_plan(on_card(Values(names, values, count), model), model);
    write(report(plan, model), text, size);
  });
}

const char* vq_sampler_stages(const char* const* names, const int64_t* values, int64_t count,
                              const char* card, char* text, int64_t size) {
  return caught([&] {
    const CardModel& model = known_card(card);
    Values planned = on_card(Values(names, values, count), model);
    planned.set("card.cluster", 0);  // the model's constants are fitted to the kernel without
    const Plan plan = best_plan(planned, model);
    write(stage_table(plan, model) + "\n" + constant_table(model), text, size);
  });
}

#if defined(VQ_STAGE_TIMES)
int32_t vq_sampler_moments() { return kMoments; }
#endif
