// Plans the pixel phase on clusters: the chain of stages over the blocks of one cluster, the
// convolutions over the others, and when which of the chain's weights come into shared memory.
#include <algorithm>

#include "planner.h"

namespace vqvae2_fast::cuda::sampler {
namespace {

constexpr int32_t kLine = 128;  // bytes
// Weights come by copies of at most this part of a block's shared memory: units begin with the
// first, and the next stage's take the place of each as soon as it may go. A model of the port's
// top in float32 waited least with it.
constexpr int32_t kCopiesInShared = 9;

int32_t rounded_up(int64_t value, int32_t unit) {
  return static_cast<int32_t>((value + unit - 1) / unit * unit);
}

// Floats that a unit's epilogue sends to every block for a network row.
int32_t floats_sent(const Network& net, const Operation& op) {
  const int32_t channels = op.outputs / kUnit;  // of outputs with gates
  // What begins a block in a channel, and the coordinates that go with two of them.
  const bool last = op.index + 1 == net.num_blocks;
  const int32_t of_channel = last ? 2 : net.num_heads > 0 ? 5 : 1;
  const int32_t coordinates = last ? 0 : net.num_heads > 0 ? 4 : 2;
  switch (op.epilogue) {
    case Epilogue::kMerge:
      return op.outputs * of_channel + coordinates;
    case Epilogue::kGateBlock:
      return channels * of_channel + coordinates;
    case Epilogue::kGateResidual:
      return channels;
    case Epilogue::kGateOutput:
      return 2 * channels;
    default:
      return op.outputs;
  }
}

[[noreturn]] void refuse(const std::string& reason) {
  throw std::invalid_argument("sampler: the pixel phase does not fit a cluster: " + reason + ".");
}

// Weights of a block's work, from where they come to where they lie.
struct Placed {
  int32_t step, begin, end;
  bool overlaps(const Placed& other) const { return begin < other.end && other.begin < end; }
};

}  // namespace

const char* Plan::why_no_cluster() const {
  const Network& net = network;
  if (!net.side_by_side) return "its convolutions read their own position";
  if (net.rows > kMostChainRows) return "there are too many network rows";
  if (net.channels % kLanes != 0) return "its channels are no multiple of 32";
  if (static_cast<int32_t>(stages.size()) > kMostChainSteps) return "it has too many stages";
  if (card.threads < 3 * kLanes) return "a block has fewer than three warps";
  if (card.blocks <= card.cluster) return "no block is left for the convolutions";
  for (const Stage& stage : stages) {
    int32_t units = 0;
    for (const Product& p : stage.products) units += p.units;
    if (stage.kind == StepKind::kProducts && units < card.cluster) {
      return "a stage has fewer units than the cluster has blocks";
    }
  }
  return nullptr;
}

// The convolutions over the blocks after the cluster, those of one block of layers after another:
// with enough blocks each computes for one block of layers only, and waits for nothing else.
void Plan::share_out_convolutions() {
  Chain& chain = program.chain;
  std::vector<Product> products;
  std::vector<int32_t> stage_of;
  int32_t units = 0;
  for (int32_t s = 0; s < convolution_stages(); ++s) {
    for (const Product& p : stages[s].products) {
      products.push_back(p);
      stage_of.push_back(s);
      units += p.units;
    }
  }
  chain.convolving = std::min(units, card.blocks - card.cluster);
  const Runs runs = cut(products, std::vector<double>(chain.convolving, 1.0));
  for (int32_t b = 0; b < card.blocks; ++b) {
    const int32_t first_work = static_cast<int32_t>(works.size());
    const int32_t first_step = static_cast<int32_t>(steps.size());
    const int32_t own = b - card.cluster;
    if (own >= 0 && own < chain.convolving) {
      for (const Run& run : runs[own]) {
        const int32_t s = stage_of[run.product];
        if (static_cast<int32_t>(steps.size()) == first_step || steps.back().stage != s) {
          Step step = {};
          step.kind = StepKind::kProducts;
          step.stage = s;
          step.wait_stage = stages[s].wait_stage;
          step.wait_before = true;
          step.wait_count = card.cluster;
          step.first = static_cast<int32_t>(works.size()) - first_work;
          steps.push_back(step);
          if (stages[s].blocks++ == 0) stages[s].first_block = b;
        }
        Work work = {};
        work.operation = products[run.product].operation;
        work.first_unit = work.resident_end = run.first_unit;
        work.end_unit = run.end_unit;
        works.push_back(work);
        steps.back().end = static_cast<int32_t>(works.size()) - first_work;
      }
    }
    blocks.push_back({.first_step = first_step,
                      .end_step = static_cast<int32_t>(steps.size()),
                      .first_work = first_work,
                      .end_work = static_cast<int32_t>(works.size())});
    program.max_steps = std::max(program.max_steps, blocks.back().end_step - first_step);
    program.max_works = std::max(program.max_works, blocks.back().end_work - first_work);
  }
}

void Plan::share_out_chain() {
  if (const char* reason = why_no_cluster()) refuse(reason);
  const Network& net = network;
  const int32_t cluster = card.cluster, first_stage = convolution_stages();
  program = {};
  Chain& chain = program.chain;
  chain = planned_chain;
  chain.blocks = cluster;
  chain.num_steps = static_cast<int32_t>(stages.size()) - first_stage;

  // The convolutions of a block of layers begin when that block has begun at the position before:
  // then all that they read is there, and what they overwrite has been fetched.
  std::vector<int32_t> begins(stages.size(), -1);
  for (int32_t s = first_stage; s < static_cast<int32_t>(stages.size()); ++s) {
    if (stages[s].kind == StepKind::kBegin) begins[s] = 0;
    for (const Product& p : stages[s].products) {
      const Epilogue epilogue = p.operation.epilogue;
      const bool ends = epilogue == Epilogue::kMerge || epilogue == Epilogue::kGateBlock;
      if (ends && p.operation.index + 1 < net.num_blocks) begins[s] = p.operation.index + 1;
    }
    if (begins[s] < 0) continue;
    stages[begins[s]].wait_stage = s;
    stages[begins[s]].wait_before = true;
  }
  share_out_convolutions();

  std::vector<std::vector<ChainStep>> steps_of(cluster);
  std::vector<std::vector<Work>> works_of(cluster);
  for (size_t s = first_stage; s < stages.size(); ++s) {
    Stage& stage = stages[s];
    stage.blocks = cluster;
    ChainStep step = {};
    step.kind = stage.kind;
    step.stage = static_cast<int32_t>(s);
    step.index = stage.index;
    step.begins = begins[s];
    if (step.begins >= 0) {
      step.convolving_first = stages[step.begins].first_block;
      step.convolving_count = stages[step.begins].blocks;
    }
    Runs runs(cluster);
    if (stage.kind == StepKind::kProducts) {
      step.exchanges = 1;
      for (const Product& p : stage.products) step.bytes += floats_sent(net, p.operation);
      runs = cut(stage.products, std::vector<double>(cluster, 1.0));
    } else if (stage.kind == StepKind::kAttend) {
      step.exchanges = 1;
      step.bytes = net.num_heads * (net.head_dim + kPartialHead);
    }
    step.bytes *= net.rows * static_cast<int32_t>(sizeof(float));
    for (int32_t b = 0; b < cluster; ++b) {
      if (stage.kind == StepKind::kProducts && runs[b].empty()) {
        refuse("a block has no units of a stage");
      }
      step.first = static_cast<int32_t>(works_of[b].size());
      for (const Run& run : runs[b]) {
        const Operation& operation = stage.products[run.product].operation;
        const auto most = static_cast<int32_t>(
            std::max<int64_t>(1, card.shared_bytes / kCopiesInShared /
                                     std::max<int64_t>(1, unit_bytes(operation, weight_bytes))));
        for (int32_t unit = run.first_unit; unit < run.end_unit; unit += most) {
          Work work = {};
          work.operation = operation;
          work.first_unit = unit;
          work.end_unit = work.resident_end = std::min(unit + most, run.end_unit);
          works_of[b].push_back(work);
        }
      }
      step.end = static_cast<int32_t>(works_of[b].size());
      steps_of[b].push_back(step);
    }
  }
  for (const std::vector<Work>& own : works_of) {
    chain.max_works = std::max(chain.max_works, static_cast<int32_t>(own.size()));
  }
  place_chain(steps_of, works_of);
}

void Plan::place_chain(std::vector<std::vector<ChainStep>>& steps_of,
                       std::vector<std::vector<Work>>& works_of) {
  const Network& net = network;
  Chain& chain = program.chain;
  const int32_t scratch =
      std::max(2 * net.num_embeddings + std::max(net.num_embeddings, kFilterWords) + 2 * kLanes,
               card.threads / kLanes * kChunk) *
      static_cast<int32_t>(sizeof(float));
  chain.scratch_offset = rounded_up(chain.state_bytes, kLine);
  chain.program_offset = rounded_up(chain.scratch_offset + scratch, kLine);
  chain.weights_offset = rounded_up(
      chain.program_offset +
          chain.max_works * int64_t{sizeof(Work) + sizeof(WeightCopy) + sizeof(uint64_t)} +
          chain.num_steps * int64_t{sizeof(ChainStep)},
      kLine);
  const int64_t room = card.shared_bytes - kSharedMargin - chain.weights_offset;
  const auto bytes_of = [&](const Work& work) {
    return (work.end_unit - work.first_unit) * unit_bytes(work.operation, weight_bytes);
  };
  int64_t most = 0;
  for (const std::vector<Work>& own : works_of) {
    int64_t all = 0;
    for (const Work& work : own) all += bytes_of(work);
    most = std::max(most, all);
  }
  chain.resident = most <= room;
  program.shared_bytes =
      chain.weights_offset + static_cast<int32_t>(std::max<int64_t>(0, std::min(most, room)));
  const int32_t num_steps = chain.num_steps;
  for (size_t b = 0; b < works_of.size(); ++b) {
    std::vector<Work>& own = works_of[b];
    std::vector<Placed> placed;
    int64_t head = 0;
    for (int32_t s = 0; s < num_steps; ++s) {
      for (int32_t w = steps_of[b][s].first; w < steps_of[b][s].end; ++w) {
        const int64_t bytes = bytes_of(own[w]);
        if (head + bytes > room) head = 0;
        own[w].shared_offset = static_cast<int32_t>(head);
        placed.push_back({s, static_cast<int32_t>(head), static_cast<int32_t>(head + bytes)});
        head += bytes;
      }
    }
    // Step in which each copy is asked for, counted from the position before: when all works that
    // lay in its place have been done.
    std::vector<std::pair<int32_t, int32_t>> order;  // step, work
    for (size_t w = 0; w < placed.size(); ++w) {
      int32_t when = 0;
      for (size_t u = 0; u < placed.size(); ++u) {
        if (!placed[w].overlaps(placed[u])) continue;
        when = std::max(when, placed[u].step + (u < w ? num_steps : 0) + 1);
      }
      if (placed[w].end > room || when > num_steps + placed[w].step) {
        refuse("a stage's weights need more shared memory than the " + std::to_string(room) +
               " bytes that are left of a block's " + std::to_string(card.shared_bytes));
      }
      order.emplace_back(when, static_cast<int32_t>(w));
    }
    std::stable_sort(order.begin(), order.end(), [&](const auto& a, const auto& b) {
      return a.first % num_steps < b.first % num_steps;
    });
    const int32_t first_copy = static_cast<int32_t>(chain_copies.size());
    for (ChainStep& step : steps_of[b]) {
      const auto is_of = [&](const auto& o) {
        return o.first % num_steps == static_cast<int32_t>(&step - steps_of[b].data());
      };
      const auto first = std::find_if(order.begin(), order.end(), is_of);
      step.first_copy = static_cast<int32_t>(first - order.begin());
      step.end_copy =
          step.first_copy + static_cast<int32_t>(std::count_if(order.begin(), order.end(), is_of));
      if (chain.resident) step.first_copy = step.end_copy = 0;
    }
    for (const auto& [when, w] : order) {
      const int64_t unit = unit_bytes(own[w].operation, weight_bytes);
      chain_copies.push_back(
          {.from = static_cast<const char*>(own[w].operation.weights) + own[w].first_unit * unit,
           .to = placed[w].begin,
           .bytes = placed[w].end - placed[w].begin,
           .work = w,
           .ahead = chain.resident || when < num_steps});
    }
    const int32_t first_work = static_cast<int32_t>(chain_works.size());
    chain_works.insert(chain_works.end(), own.begin(), own.end());
    chain_steps.insert(chain_steps.end(), steps_of[b].begin(), steps_of[b].end());
    chain_blocks.push_back({.first_work = first_work,
                            .end_work = static_cast<int32_t>(chain_works.size()),
                            .first_copy = first_copy,
                            .end_copy = static_cast<int32_t>(chain_copies.size())});
  }
}

}  // namespace vqvae2_fast::cuda::sampler
