// The plan as a table, with the time that a stated model (cards.h) expects. No time here is
// measured.
#include <stdio.h>

#include <algorithm>
#include <cmath>

#include "cards.h"
#include "planner.h"

namespace vqvae2_fast::cuda::sampler {
namespace {

template <typename... Values>
std::string line(const char* format, Values... values) {
  char text[256];
  snprintf(text, sizeof(text), format, values...);
  return std::string(text) + "\n";
}

// The largest amounts of work that any block has in a stage at a step.
struct Load {
  double shared = 0, streamed = 0;  // bytes of weights, read once for 8 step rows
  double staged = 0;                // bytes of inputs into shared memory
  double stagings = 0;              // times that a block waits for inputs
  double products = 0;              // multiply-adds
  double all_streamed = 0;          // of all blocks
  int32_t blocks = 0;
};

struct Bytes {
  double resident = 0, streamed = 0;
};

Bytes bytes_of(const Plan& plan, const BlockProgram& block) {
  Bytes bytes;
  for (int32_t w = block.first_work; w < block.end_work; ++w) {
    const Work& work = plan.works[w];
    const double unit =
        static_cast<double>(work.operation.padded_inputs) * kUnit * plan.weight_bytes;
    bytes.resident += (work.resident_end - work.first_unit) * unit;
    bytes.streamed += (work.end_unit - work.resident_end) * unit;
  }
  return bytes;
}

class Model {
 public:
  Model(const Plan& plan, const CardModel& card) : plan_(plan), card_(card) {
    loads_.resize(plan.stages.size());
    for (const BlockProgram& block : plan.blocks) add(block);
    for (const Load& load : loads_) streamed_ += load.all_streamed;
  }

  const Load& load(size_t stage) const { return loads_[stage]; }
  // Weights that do not fit the L2 cache with the others come from memory.
  bool streams_from_memory() const { return streamed_ > kL2Share * card_.l2_bytes; }

  // Seconds of a stage. `free_weights` assumes that those in shared memory cost nothing to read.
  double seconds(size_t s, bool free_weights = false) const {
    const Stage& stage = plan_.stages[s];
    const Network& net = plan_.network;
    if (stage.kind == StepKind::kDraw) {
      const int32_t draws = net.batch * net.window;
      return handover(stage) + (kDrawing + filters()) * ((draws + stage.blocks - 1) / stage.blocks);
    }
    const double latency = handover(stage) + kL2Trip + kSumLatency;
    if (stage.kind == StepKind::kBegin || stage.kind == StepKind::kMergeHeads) return latency;
    if (stage.kind == StepKind::kAttend) {
      // Half of the positions on average.
      const double cached = static_cast<double>(net.rows) * net.num_heads * net.head_dim *
                            net.height * net.width * sizeof(float);
      const bool fits = 2 * cached * net.num_blocks < kL2Share * card_.l2_bytes;
      return latency + net.window * cached / (fits ? card_.l2_bandwidth : card_.memory_bandwidth);
    }
    const Load& l = loads_[s];
    const double passes = (net.step_rows + 7) / 8;
    const double weights = free_weights ? 0 : l.shared * passes;
    const double shared =
        (weights + l.products / kUnit * sizeof(float)) / (kSharedBytesPerCycle * card_.clock);
    const double streamed = std::max(l.streamed * passes / (kL2BytesPerCycle * card_.clock),
                                     l.all_streamed * passes / card_.l2_bandwidth);
    const double staged = std::max(l.staged / (kL2BytesPerCycle * card_.clock),
                                   std::max(0.0, l.stagings - 1) * kL2Trip);
    const double products = l.products / (kFmaPerCycle * card_.clock);
    return latency + staged + std::max({shared, streamed, products});
  }

  // Seconds until a launch has loaded its resident weights, which the row phase has displaced from
  // the L2 cache.
  double reload() const {
    double most = 0, all = 0;
    for (const BlockProgram& block : plan_.blocks) {
      const double own = bytes_of(plan_, block).resident;
      most = std::max(most, own);
      all += own;
    }
    return std::max(most / (kL2BytesPerCycle * card_.clock), all / card_.memory_bandwidth);
  }

  // Seconds of a step: the chain of stages, or the time to load the weights from memory if that is
  // longer, because each stage's weights are prefetched during the stage before. Convolutions that
  // run in parallel do so during the last layers and the draw of the position before.
  double step(bool free_weights = false) const {
    const bool side_by_side = plan_.network.side_by_side;
    double chain = 0, tail = 0;
    for (size_t s = side_by_side ? 1 : 0; s < plan_.stages.size(); ++s) {
      const bool in_tail = side_by_side && static_cast<int32_t>(s) > plan_.stages[0].wait_stage;
      (in_tail ? tail : chain) += seconds(s, free_weights);
    }
    chain += side_by_side ? std::max(tail, seconds(0, free_weights)) : tail;
    if (plan_.network.window > 1) chain += kMoving;
    return std::max(chain, streams_from_memory() ? streamed_ / card_.memory_bandwidth : 0.0);
  }

  // Seconds of the row phase of a row.
  double row() const {
    const RowPhase& phase = plan_.row_phase;
    double products = 0, bytes = 0;
    for (const RowProduct* p : {&phase.conv1, &phase.conv2}) {
      const double weights =
          static_cast<double>(p->layers) * p->all_segments * p->inputs * p->outputs;
      products += weights * p->rows;
      bytes += weights * (phase.mode == RowMode::kBFloat16 ? 2 : 4);
    }
    const double rate = phase.mode == RowMode::kFloat32 ? card_.float32 * kRowEfficiency32
                        : phase.mode == RowMode::kTensorFloat32
                            ? card_.tensor_float32 * kRowEfficiencyTensor
                            : card_.bfloat16 * kRowEfficiencyTensor;
    return std::max(products / rate, bytes / card_.memory_bandwidth) + 3 * kLaunch;
  }

 private:
  // Seconds from the end of the stage before until a block sees it.
  double handover(const Stage& stage) const {
    const int32_t flags = stage.wait_stage < 0 ? 0 : plan_.stages[stage.wait_stage].blocks;
    const int32_t polls = (flags + plan_.card.threads - 1) / plan_.card.threads;
    return kTelling + std::max(polls, 1) * kL2Trip;
  }

  // Seconds of top-k and top-p of one code. Probabilities are computed for the total, and again
  // for the first digit.
  double filters() const {
    const Network& net = plan_.network;
    const double codes = net.num_embeddings / kFmaPerCycle;
    const double select = kDigitsLookedAt * (kDigitCycles + kKeyInstructions * codes);
    const bool top_k = net.rule.top_k < net.num_embeddings, top_p = net.rule.top_p < 1.0f;
    if (net.rule.temperature == 0.0f || (!top_k && !top_p)) return 0;
    double cycles = kReductionCycles;
    if (top_k) cycles += select;
    if (top_p) cycles += kReductionCycles + select + 2 * kProbabilityInstructions * codes;
    return cycles / card_.clock;
  }

  void add(const BlockProgram& block) {
    const int32_t rows = plan_.network.step_rows, buffer = plan_.program.buffer_floats;
    for (int32_t s = block.first_step; s < block.end_step; ++s) {
      const Step& step = plan_.steps[s];
      Load& most = loads_[step.stage];
      ++most.blocks;
      if (step.kind != StepKind::kProducts) continue;
      Load own;
      int64_t beside = 0;  // floats of inputs that are staged together, as `do_products` does
      for (int32_t w = block.first_work + step.first; w < block.first_work + step.end; ++w) {
        const Work& work = plan_.works[w];
        const double inputs = work.operation.padded_inputs;
        const double unit = inputs * kUnit * plan_.weight_bytes;
        own.shared += (work.resident_end - work.first_unit) * unit;
        own.streamed += (work.end_unit - work.resident_end) * unit;
        own.staged += rows * inputs * sizeof(float);
        const int64_t floats = static_cast<int64_t>(rows) * work.operation.padded_inputs;
        if (own.stagings == 0 || beside + floats > buffer) {
          own.stagings += std::max<double>(1, std::ceil(static_cast<double>(floats) / buffer));
          beside = 0;
        }
        beside += floats;
        own.products += (work.end_unit - work.first_unit) * inputs * kUnit * rows;
      }
      most.shared = std::max(most.shared, own.shared);
      most.streamed = std::max(most.streamed, own.streamed);
      most.staged = std::max(most.staged, own.staged);
      most.stagings = std::max(most.stagings, own.stagings);
      most.products = std::max(most.products, own.products);
      most.all_streamed += own.streamed;
    }
  }

  const Plan& plan_;
  const CardModel& card_;
  std::vector<Load> loads_;
  double streamed_ = 0;  // bytes of a step, of all blocks
};

}  // namespace

std::string report(const Plan& plan, const Plan& single, const CardModel& card) {
  const Network& net = plan.network;
  const Model model(plan, card);
  Bytes all, most;
  int64_t waits = 0;
  for (const BlockProgram& block : plan.blocks) {
    const Bytes own = bytes_of(plan, block);
    all.resident += own.resident;
    all.streamed += own.streamed;
    most.resident = std::max(most.resident, own.resident);
    most.streamed = std::max(most.streamed, own.streamed);
    for (int32_t s = block.first_step; s < block.end_step; ++s) {
      waits += plan.steps[s].wait_count > 0;
    }
  }
  constexpr double kMB = 1e6, kKiB = 1024, kMicro = 1e6;
  const double step = model.step(), row = model.row(), reload = model.reload();
  const auto map = [&](double kept) {
    return net.height * (row + kCooperativeLaunch + reload + net.width / kept * step);
  };
  const bool windows = net.window > 1;
  const std::string of_a = windows ? "a step" : "a position";
  std::string text;
  text +=
      line("%s: %d blocks of %d threads, batch %d (%d network rows), weights of %d bytes",
           card.name, plan.card.blocks, plan.card.threads, net.batch, net.rows, plan.weight_bytes);
  text += line("  %-28s %9.2f MB", ("weights read at " + of_a).c_str(),
               (all.resident + all.streamed) / kMB);
  text += line("    %-26s %9.2f MB  (sums take them; weights there would win %.1f us at most)",
               "in registers", 0.0, (step - model.step(true)) * kMicro);
  text += line("    %-26s %9.2f MB  at most %.1f KiB per block", "in shared memory",
               all.resident / kMB, most.resident / kKiB);
  text += line("    %-26s %9.2f MB  at most %.1f KiB per block",
               model.streams_from_memory() ? "from device memory" : "from the L2 cache",
               all.streamed / kMB, most.streamed / kKiB);
  text +=
      line("  %-28s %9.1f KiB: inputs %.1f, program %.1f, weights %.1f", "shared memory of a block",
           plan.program.shared_bytes / kKiB, plan.program.buffer_floats * 4 / kKiB,
           (plan.program.weights_offset - plan.program.program_offset) / kKiB,
           (plan.program.shared_bytes - plan.program.weights_offset) / kKiB);
  text += line("  %-28s %9.2f MB", "memory of the draw", plan.workspace_bytes / kMB);
  text +=
      line("  stages %s %d; flags written %zu, waits on flags %lld, grid barriers 0", of_a.c_str(),
           static_cast<int>(plan.stages.size()), plan.steps.size(), static_cast<long long>(waits));
  text += line("  %-20s %5s %7s %12s %14s %9s", "stage", "times", "blocks", "KiB shared",
               "KiB streamed", "us each");
  std::vector<bool> told(plan.stages.size(), false);
  for (size_t s = 0; s < plan.stages.size(); ++s) {
    if (told[s]) continue;
    const std::string stage = plan.stages[s].name;
    int times = 0;
    double seconds = 0, shared = 0, streamed = 0;
    for (size_t t = s; t < plan.stages.size(); ++t) {
      if (stage != plan.stages[t].name) continue;
      told[t] = true;
      ++times;
      seconds += model.seconds(t);
      shared = std::max(shared, model.load(t).shared);
      streamed = std::max(streamed, model.load(t).streamed);
    }
    text += line("  %-20s %5d %7d %12.1f %14.1f %9.2f", stage.c_str(), times, model.load(s).blocks,
                 shared / kKiB, streamed / kKiB, seconds / times * kMicro);
  }
  text +=
      line("  expected, not measured: %.1f us %s; a row of the map takes %.0f us for taps above",
           step * kMicro, of_a.c_str(), row * kMicro);
  text += line("  and %.0f us to launch and to load the weights of shared memory;",
               (kCooperativeLaunch + reload) * kMicro);
  if (!windows) {
    text += line("  %.3f s per map of %dx%d (%.3f s of it taps above), %.2f maps per second",
                 map(1), net.height, net.width, net.height * row, net.batch / map(1));
    return text;
  }
  const double alone = Model(single, card).step();
  text += line(
      "  a window of %d columns; one code per step takes %.1f us, so windows win from %.2f kept",
      net.window, alone * kMicro, step / alone);
  text += line(
      "  codes per step; a map of %dx%d (%.2f ms of it taps above) takes, by codes kept per step:",
      net.height, net.width, net.height * row * 1e3);
  for (int32_t kept = 1; kept <= net.window;
       kept = kept < net.window ? std::min(2 * kept, net.window) : kept + 1) {
    text += line("  %5d %9.2f ms", kept, map(kept) * 1e3);
  }
  return text;
}

}  // namespace vqvae2_fast::cuda::sampler
