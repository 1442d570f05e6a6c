// Which of the pixel phase's two designs a draw takes.
#include <optional>
#include <utility>

#include "model.h"

namespace vqvae2_fast::cuda::sampler {

Plan best_plan(Values values, const CardModel& card) {
  const int64_t blocks = values.integer("card.blocks");
  values.set("card.row_blocks", blocks);
  if (values.integer("card.cluster") >= 0) return Plan(values);
  values.set("card.cluster", 0);
  std::optional<Plan> best;
  std::string refused;
  try {
    best.emplace(values);
  } catch (const std::invalid_argument& error) {
    refused = error.what();
  }
  for (const int64_t size : {16, 8}) {
    const int64_t clusters = values.integer("card.clusters" + std::to_string(size));
    values.set("card.blocks", std::min(blocks / size, clusters) * size);
    values.set("card.cluster", size);
    if (clusters == 0) continue;
    try {
      Plan plan(values);
      if (!best || Model(plan, card).step() < Model(*best, card).step()) best = std::move(plan);
    } catch (const std::invalid_argument&) {
      // It does not fit a cluster.
    }
  }
  if (!best) throw std::invalid_argument(refused);
  return std::move(*best);
}

}  // namespace vqvae2_fast::cuda::sampler
