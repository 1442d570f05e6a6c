// The plan as a table, with the time that a stated model (cards.h) expects. No time here is
// measured.
#include <stdio.h>

#include <algorithm>

#include "model.h"

namespace vqvae2_fast::cuda::sampler {
namespace {

template <typename... Values>
std::string line(const char* format, Values... values) {
  char text[256];
  snprintf(text, sizeof(text), format, values...);
  return std::string(text) + "\n";
}

}  // namespace

std::string report(const Plan& plan, const CardModel& card) {
  const Network& net = plan.network;
  const Model model(plan, card);
  Bytes all, most;
  const Chain& chain = plan.program.chain;
  for (const Bytes& own : bytes_of_all(plan)) {
    all.resident += own.resident;
    all.streamed += own.streamed;
    most.resident = std::max(most.resident, own.resident);
    most.streamed = std::max(most.streamed, own.streamed);
  }
  int64_t waits = 0, flags = static_cast<int64_t>(plan.steps.size());
  for (const Step& step : plan.steps) waits += step.wait_count > 0;
  // Each block of the cluster tells the others of a block of layers, and waits for its
  // convolutions.
  for (const ChainStep& step : plan.chain_steps) {
    flags += step.begins >= 0;
    waits += step.begins >= 0;
  }
  constexpr double kMB = 1e6, kKiB = 1024, kMicro = 1e6;
  const double step = model.step(), row = model.row(), reload = model.reload();
  const double map = net.height * (row + kCooperativeLaunch + reload + net.width * step);
  std::string text;
  text +=
      line("%s: %d blocks of %d threads, batch %d (%d network rows), weights of %d bytes",
           card.name, plan.card.blocks, plan.card.threads, net.batch, net.rows, plan.weight_bytes);
  if (chain.blocks > 0) {
    text += line("  the chain of stages on a cluster of %d blocks, its weights %s;", chain.blocks,
                 chain.resident ? "resident" : "streamed from the L2 cache");
    text += line("  the convolutions on %d more", chain.convolving);
  }
  text +=
      line("  %-28s %9.2f MB", "weights read at a position", (all.resident + all.streamed) / kMB);
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
  if (chain.blocks > 0) {
    text += line("  %-28s %9.1f KiB: activations %.1f, scratch %.1f, program %.1f, weights %.1f",
                 "of one of the cluster", plan.program.shared_bytes / kKiB,
                 chain.state_bytes / kKiB, (chain.program_offset - chain.scratch_offset) / kKiB,
                 (chain.weights_offset - chain.program_offset) / kKiB,
                 (plan.program.shared_bytes - chain.weights_offset) / kKiB);
  }
  text += line("  %-28s %9.2f MB", "memory of the draw", plan.workspace_bytes / kMB);
  text += line("  stages per position %d; flags written %lld, waits on flags %lld, grid barriers 0",
               static_cast<int>(plan.stages.size()), static_cast<long long>(flags),
               static_cast<long long>(waits));
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
  const RowTile& tile = plan.row_phase.tile;
  text += line(
      "  expected, not measured: %.1f us per position; a row of the map takes %.0f us for taps "
      "above",
      step * kMicro, row * kMicro);
  text += line(
      "  (tiles of %dx%d, rows x columns) and %.0f us to launch and to load the weights of shared "
      "memory;",
      tile.rows, tile.columns, (kCooperativeLaunch + reload) * kMicro);
  text += line("  %.3f s per map of %dx%d (%.3f s of it taps above), %.2f maps per second", map,
               net.height, net.width, net.height * row, net.batch / map);
  return text;
}

std::string stage_table(const Plan& plan, const CardModel& card) {
  const Model model(plan, card);
  std::string text =
      "name,blocks,wait_stage,wait_before,polls,trips,sums,draws,seconds,staged,more_stagings,"
      "shared,streamed,from_l2,from_memory,products,expected\n";
  for (size_t s = 0; s < plan.stages.size(); ++s) {
    const Stage& stage = plan.stages[s];
    const Terms t = model.terms(s);
    std::string name = stage.name;
    std::replace(name.begin(), name.end(), ',', ' ');
    text += line("%s,%d,%d,%d,%.0f,%.0f,%.0f,%.0f,%.9g,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,%.9g",
                 name.c_str(), stage.blocks, stage.wait_stage, stage.wait_before, t.polls, t.trips,
                 t.sums, t.draws, t.seconds, t.staged, t.more_stagings, t.shared, t.streamed,
                 t.from_l2, t.from_memory, t.products, model.seconds(s));
  }
  return text;
}

std::string constant_table(const CardModel& card) {
  const auto row = [](const char* name, double value) { return line("%s,%.9g", name, value); };
  return row("clock", card.clock) + row("kTelling", kTelling) + row("kL2Trip", kL2Trip) +
         row("kSumLatency", kSumLatency) + row("kDrawing", kDrawing) +
         row("kSharedBytesPerCycle", kSharedBytesPerCycle) +
         row("kL2BytesPerCycle", kL2BytesPerCycle) + row("kFmaPerCycle", kFmaPerCycle) +
         row("l2_bandwidth", card.l2_bandwidth) + row("memory_bandwidth", card.memory_bandwidth);
}

}  // namespace vqvae2_fast::cuda::sampler
