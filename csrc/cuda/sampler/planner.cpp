// Distributes the stages over the blocks of the persistent launch, and places their weights.
#include "planner.h"

#include <algorithm>

namespace vqvae2_fast::cuda::sampler {
// Block b gets the units whose middle lies in its part of the whole cost; parts are proportional to
// `shares`.
Runs cut(const std::vector<Product>& products, const std::vector<double>& shares) {
  double cost = 0, share = 0;
  for (const Product& p : products) cost += p.units * (p.operation.padded_inputs + 1.0);
  for (const double s : shares) share += s;
  Runs runs(shares.size());
  size_t block = 0;
  double end = shares[0] / share * cost, done = 0;
  for (size_t n = 0; n < products.size(); ++n) {
    const double unit = products[n].operation.padded_inputs + 1.0;
    for (int32_t u = 0; u < products[n].units; ++u, done += unit) {
      while (block + 1 < shares.size() && done + unit / 2 >= end) {
        ++block;
        end += shares[block] / share * cost;
      }
      std::vector<Run>& own = runs[block];
      if (own.empty() || own.back().product != static_cast<int32_t>(n)) {
        own.push_back({static_cast<int32_t>(n), u, u});
      }
      own.back().end_unit = u + 1;
    }
  }
  return runs;
}

int64_t unit_bytes(const Operation& operation, int32_t weight_bytes) {
  return static_cast<int64_t>(operation.padded_inputs) * kUnit * weight_bytes;
}

namespace {

int32_t rounded_up(int64_t value, int32_t unit) {
  return static_cast<int32_t>((value + unit - 1) / unit * unit);
}

}  // namespace

void Plan::share_out() {
  const Network& net = network;
  const int32_t grid = card.blocks;
  const int32_t drawing = std::min(net.batch, grid);
  std::vector<std::vector<Step>> steps_of(grid);
  std::vector<std::vector<Work>> works_of(grid);
  std::vector<Runs> runs_of(stages.size());
  std::vector<double> cost(grid, 0);  // of a block, in weights read at a position

  // The chain comes first: every block gets an equal part of each stage. Then the convolutions that
  // run in parallel, which are the largest stage by far, fill up the blocks that have less.
  const int32_t first = net.side_by_side ? 1 : 0;
  for (size_t s = 0; s < stages.size(); ++s) {
    Stage& stage = stages[s];
    if (stage.kind == StepKind::kBegin || stage.kind == StepKind::kDraw) {
      stage.blocks = drawing;
    } else if (stage.kind != StepKind::kProducts) {
      stage.blocks = grid;
    } else {
      int32_t units = 0;
      for (const Product& p : stage.products) units += p.units;
      stage.blocks = std::min(units, grid);
      if (static_cast<int32_t>(s) < first) continue;
      runs_of[s] = cut(stage.products, std::vector<double>(stage.blocks, 1.0));
      for (int32_t b = 0; b < stage.blocks; ++b) {
        for (const Run& run : runs_of[s][b]) {
          cost[b] += static_cast<double>(run.end_unit - run.first_unit) *
                     stage.products[run.product].operation.padded_inputs;
        }
      }
    }
  }
  if (net.side_by_side) {
    double all = 0;
    for (const double c : cost) all += c;
    for (const Product& p : stages[0].products) {
      all += static_cast<double>(p.units) * p.operation.padded_inputs;
    }
    std::vector<double> shares(stages[0].blocks);
    for (int32_t b = 0; b < stages[0].blocks; ++b) {
      shares[b] = std::max(all / grid - cost[b], 1e-3);
      // With few samples, the blocks that draw have no other work when the logits come.
      if (b < drawing && drawing * 8 <= grid) shares[b] = 1e-9;
    }
    runs_of[0] = cut(stages[0].products, shares);
  }

  for (size_t s = 0; s < stages.size(); ++s) {
    const Stage& stage = stages[s];
    for (int32_t b = 0; b < stage.blocks; ++b) {
      Step step = {};
      step.kind = stage.kind;
      step.stage = static_cast<int32_t>(s);
      step.index = stage.index;
      step.wait_stage = stage.wait_stage;
      step.wait_before = stage.wait_before;
      step.wait_count = stage.wait_stage < 0 ? 0 : stages[stage.wait_stage].blocks;
      if (stage.kind == StepKind::kProducts) {
        step.first = static_cast<int32_t>(works_of[b].size());
        for (const Run& run : runs_of[s][b]) {
          Work work = {};
          work.operation = stage.products[run.product].operation;
          work.first_unit = work.resident_end = run.first_unit;
          work.end_unit = run.end_unit;
          works_of[b].push_back(work);
        }
        step.end = static_cast<int32_t>(works_of[b].size());
      } else if (stage.kind == StepKind::kAttend || stage.kind == StepKind::kMergeHeads) {
        step.first = b;
        step.end = stage.blocks;
      } else {
        step.first = static_cast<int32_t>(static_cast<int64_t>(net.batch) * b / drawing);
        step.end = static_cast<int32_t>(static_cast<int64_t>(net.batch) * (b + 1) / drawing);
      }
      steps_of[b].push_back(step);
    }
  }
  program = {};
  for (int32_t b = 0; b < grid; ++b) {
    const int32_t first_step = static_cast<int32_t>(steps.size());
    const int32_t first_work = static_cast<int32_t>(works.size());
    steps.insert(steps.end(), steps_of[b].begin(), steps_of[b].end());
    works.insert(works.end(), works_of[b].begin(), works_of[b].end());
    blocks.push_back({.first_step = first_step,
                      .end_step = static_cast<int32_t>(steps.size()),
                      .first_work = first_work,
                      .end_work = static_cast<int32_t>(works.size())});
    program.max_steps = std::max(program.max_steps, static_cast<int32_t>(steps_of[b].size()));
    program.max_works = std::max(program.max_works, static_cast<int32_t>(works_of[b].size()));
  }
}

void Plan::place_weights() {
  const Network& net = network;
  constexpr int32_t kMaxBuffer = 64 << 10;  // bytes: more rows of inputs side by side gain little
  constexpr int32_t kLine = 128;            // bytes; weights begin one
  // The inputs of a step's works lie side by side. Those of the convolutions that run in parallel
  // with the chain are staged in turn where they do not fit: they have time, and weights need the
  // room.
  int32_t inputs = 0, together = 0;
  for (const BlockProgram& block : blocks) {
    for (int32_t s = block.first_step; s < block.end_step; ++s) {
      const Step& step = steps[s];
      if (step.kind != StepKind::kProducts) continue;
      int32_t of_step = 0;
      for (int32_t w = block.first_work + step.first; w < block.first_work + step.end; ++w) {
        inputs = std::max(inputs, works[w].operation.padded_inputs);
        of_step += works[w].operation.padded_inputs;
      }
      if (step.stage >= convolution_stages()) together = std::max(together, of_step);
    }
  }
  const int64_t code = program.max_steps * sizeof(Step) + program.max_works * sizeof(Work);
  const int64_t left = card.shared_bytes - kSharedMargin - code - 2 * kLine;
  const int64_t wanted = std::min<int64_t>(
      {static_cast<int64_t>(std::max(inputs, together)) * net.rows, kMaxBuffer / 4, left / 4});
  const int32_t of_heads = card.threads / kLanes * kChunk;  // the chunk of each warp
  const int32_t scratch_floats = std::max(
      2 * net.num_embeddings + std::max(net.num_embeddings, kFilterWords) + 2 * kLanes, of_heads);
  const int32_t needed = std::max(inputs, scratch_floats);
  program.buffer_floats = rounded_up(std::max<int64_t>(needed, wanted / kLanes * kLanes), kLanes);
  program.program_offset = program.buffer_floats * 4;
  program.weights_offset = rounded_up(program.program_offset + code, kLine);
  const int64_t room = card.shared_bytes - kSharedMargin - program.weights_offset;
  if (room < 0) {
    throw std::invalid_argument(
        "sampler: the kernel needs " + std::to_string(program.weights_offset + kSharedMargin) +
        " bytes of shared memory per block for inputs and program, the card has " +
        std::to_string(card.shared_bytes) + ".");
  }
  // First come the weights of the chain, because there a block waits for them; then those of the
  // convolutions that run in parallel.
  for (const BlockProgram& block : blocks) {
    int64_t used = 0;
    for (const bool chain : {true, false}) {
      for (int32_t s = block.first_step; s < block.end_step; ++s) {
        const Step& step = steps[s];
        const bool side_by_side = step.stage < convolution_stages();
        if (step.kind != StepKind::kProducts || side_by_side == chain) continue;
        for (int32_t w = block.first_work + step.first; w < block.first_work + step.end; ++w) {
          Work& work = works[w];
          const int64_t bytes = unit_bytes(work.operation, weight_bytes);
          const int64_t units = work.end_unit - work.first_unit;
          const int64_t fits = bytes == 0 ? units : std::min(units, (room - used) / bytes);
          work.resident_end = work.first_unit + static_cast<int32_t>(fits);
          work.shared_offset = static_cast<int32_t>(used);
          used += fits * bytes;
        }
      }
    }
    program.shared_bytes = std::max<int32_t>(program.shared_bytes,
                                             program.weights_offset + static_cast<int32_t>(used));
  }
  program.network = network;
  program.grid = card.blocks;
  program.threads = card.threads;
  program.num_stages = static_cast<int32_t>(stages.size());
}

}  // namespace vqvae2_fast::cuda::sampler
