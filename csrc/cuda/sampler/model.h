// The model of a plan's time (cards.h). No time here is measured.
#pragma once

#include <algorithm>
#include <cmath>

#include "cards.h"
#include "planner.h"

namespace vqvae2_fast::cuda::sampler {

// The largest amounts of work that any block has in a stage at a step.
struct Load {
  double shared = 0, streamed = 0;  // bytes of weights, read once for 8 network rows
  double staged = 0;                // bytes of inputs into shared memory
  double stagings = 0;              // times that a block waits for inputs
  double products = 0;              // multiply-adds
  double all_streamed = 0;          // of all blocks
  int32_t blocks = 0;
};

// A stage in units of the model's constants. Handing over takes kTelling and `polls` trips to the
// L2 cache. Then come `trips` such trips, `sums` of kSumLatency, `draws` of kDrawing and `seconds`;
// the longer of the staged bytes, at a multiprocessor's rate of the L2 cache, and of a trip for
// each further staging; and the longest of the rest, each at its rate.
struct Terms {
  double polls = 0, trips = 0, sums = 0, draws = 0, seconds = 0;
  double staged = 0, more_stagings = 0;
  double shared = 0;       // bytes of shared memory that a multiprocessor reads
  double streamed = 0;     // bytes of the L2 cache that it reads
  double from_l2 = 0;      // that all read
  double from_memory = 0;  // bytes of memory that all read
  double products = 0;     // multiply-adds of a multiprocessor
};

struct Bytes {
  double resident = 0, streamed = 0;
};

inline Bytes bytes_of(const Plan& plan, const BlockProgram& block) {
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

// Of every block of the launch.
inline std::vector<Bytes> bytes_of_all(const Plan& plan) {
  std::vector<Bytes> all;
  for (const BlockProgram& block : plan.blocks) all.push_back(bytes_of(plan, block));
  for (size_t b = 0; b < plan.chain_blocks.size(); ++b) {
    const ChainBlock& block = plan.chain_blocks[b];
    for (int32_t c = block.first_copy; c < block.end_copy; ++c) {
      (plan.program.chain.resident ? all[b].resident : all[b].streamed) +=
          plan.chain_copies[c].bytes;
    }
  }
  return all;
}

class Model {
 public:
  Model(const Plan& plan, const CardModel& card) : plan_(plan), card_(card) {
    loads_.resize(plan.stages.size());
    for (const BlockProgram& block : plan.blocks) add(block);
    add_chain();
    for (const Load& load : loads_) streamed_ += load.all_streamed;
  }

  const Load& load(size_t stage) const { return loads_[stage]; }
  // Weights that do not fit the L2 cache with the others come from memory.
  bool streams_from_memory() const { return streamed_ > kL2Share * card_.l2_bytes; }

  // What a stage does, as multiples of the constants of cards.h. `free_weights` assumes that those
  // in shared memory cost nothing to read.
  Terms terms(size_t s, bool free_weights = false) const {
    const Stage& stage = plan_.stages[s];
    const Network& net = plan_.network;
    Terms terms;
    if (in_cluster(s)) return chain_terms(s, free_weights);
    const int32_t flags = stage.wait_stage < 0 ? 0 : plan_.stages[stage.wait_stage].blocks;
    terms.polls = (flags + plan_.card.threads - 1) / plan_.card.threads;
    if (stage.kind == StepKind::kDraw) {
      terms.draws = (net.batch + stage.blocks - 1) / stage.blocks;
      terms.seconds = filters() * terms.draws;
      return terms;
    }
    terms.trips = terms.sums = 1;
    if (stage.kind == StepKind::kAttend) {
      // Half of the positions on average.
      const double cached = static_cast<double>(net.rows) * net.num_heads * net.head_dim *
                            net.height * net.width * sizeof(float);
      const bool fits = 2 * cached * net.num_blocks < kL2Share * card_.l2_bytes;
      (fits ? terms.from_l2 : terms.from_memory) = cached;
    }
    if (stage.kind != StepKind::kProducts) return terms;
    const Load& l = loads_[s];
    const double passes = (net.rows + 7) / 8;
    terms.shared = (free_weights ? 0 : l.shared * passes) + l.products / kUnit * sizeof(float);
    terms.streamed = l.streamed * passes;
    terms.from_l2 = l.all_streamed * passes;
    terms.staged = l.staged;
    terms.more_stagings = std::max(0.0, l.stagings - 1);
    terms.products = l.products;
    return terms;
  }

  // Seconds of a stage.
  double seconds(size_t s, bool free_weights = false) const {
    const Terms t = terms(s, free_weights);
    const double staged =
        std::max(t.staged / (kL2BytesPerCycle * card_.clock), t.more_stagings * kL2Trip);
    const double work = std::max(
        {t.shared / (kSharedBytesPerCycle * card_.clock),
         t.streamed / (kL2BytesPerCycle * card_.clock), t.from_l2 / card_.l2_bandwidth,
         t.from_memory / card_.memory_bandwidth, t.products / (kFmaPerCycle * card_.clock)});
    const double handing = in_cluster(s) ? 0 : kTelling;
    return handing + (t.polls + t.trips) * kL2Trip + t.sums * kSumLatency + t.draws * kDrawing +
           t.seconds + staged + work;
  }

  // Seconds until a launch has loaded its resident weights, which the row phase has displaced from
  // the L2 cache.
  double reload() const {
    double most = 0, all = 0;
    for (const Bytes& own : bytes_of_all(plan_)) {
      most = std::max(most, own.resident);
      all += own.resident;
    }
    return std::max(most / (kL2BytesPerCycle * card_.clock), all / card_.memory_bandwidth);
  }

  // Seconds of a step: the chain of stages, or the time to load the weights from memory if that is
  // longer, because each stage's weights are prefetched during the stage before. Convolutions that
  // run in parallel do so during the last layers and the draw of the position before.
  double step(bool free_weights = false) const {
    if (plan_.program.chain.blocks > 0) return chain_step(free_weights);
    const bool side_by_side = plan_.network.side_by_side;
    double chain = 0, tail = 0;
    for (size_t s = side_by_side ? 1 : 0; s < plan_.stages.size(); ++s) {
      const bool in_tail = side_by_side && static_cast<int32_t>(s) > plan_.stages[0].wait_stage;
      (in_tail ? tail : chain) += seconds(s, free_weights);
    }
    chain += side_by_side ? std::max(tail, seconds(0, free_weights)) : tail;
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
      bytes += weights * plan_.weight_bytes;
    }
    const double rate = phase.mode == RowMode::kFloat32         ? card_.float32
                        : phase.mode == RowMode::kTensorFloat32 ? card_.tensor_float32
                                                                : card_.bfloat16;
    const double cycles =
        row_cycles({&phase.conv1, &phase.conv2}, phase.mode, phase.tile, plan_.card.row_blocks);
    return std::max({cycles / card_.clock, products / (rate * kRowShare),
                     bytes / card_.memory_bandwidth}) +
           3 * kLaunch;
  }

 private:
  size_t first_of_chain() const { return static_cast<size_t>(plan_.convolution_stages()); }
  bool in_cluster(size_t s) const {
    return plan_.program.chain.blocks > 0 && s >= first_of_chain();
  }

  // The works of block b in the chain's step.
  const ChainStep& chain_step_of(int32_t b, size_t step) const {
    return plan_.chain_steps[b * plan_.program.chain.num_steps + step];
  }

  // Of the weights of a chain block's work.
  double bytes_of(int32_t b, int32_t w) const {
    const Work& work = plan_.chain_works[plan_.chain_blocks[b].first_work + w];
    return static_cast<double>(work.end_unit - work.first_unit) * work.operation.padded_inputs *
           kUnit * plan_.weight_bytes;
  }

  void add_chain() {
    const Chain& chain = plan_.program.chain;
    for (int32_t b = 0; b < chain.blocks; ++b) {
      for (int32_t s = 0; s < chain.num_steps; ++s) {
        const ChainStep& step = chain_step_of(b, s);
        Load& most = loads_[step.stage];
        ++most.blocks;
        double bytes = 0;
        for (int32_t w = step.first; w < step.end; ++w) bytes += bytes_of(b, w);
        most.shared = std::max(most.shared, bytes);
        most.products = std::max(most.products, bytes / plan_.weight_bytes * plan_.network.rows);
        if (!chain.resident) streamed_ += bytes;
      }
    }
  }

  // A stage of the chain on a cluster. Every block draws and begins for itself: it finds the
  // logits, and what the convolutions gave, in its own shared memory; what the code that has just
  // been drawn adds comes from the L2 cache.
  Terms chain_terms(size_t s, bool free_weights) const {
    const Stage& stage = plan_.stages[s];
    const Network& net = plan_.network;
    Terms terms;
    if (stage.kind == StepKind::kDraw) {
      terms.draws = net.batch;
      terms.seconds = (filters() - kL2Trip) * net.batch;
      return terms;
    }
    terms.sums = 1;
    if (stage.kind == StepKind::kBegin) {
      terms.trips = 1;
      return terms;
    }
    terms.seconds = kClusterHandOver;
    if (stage.kind == StepKind::kAttend) {
      terms.trips = 1;
      // Half of the positions on average, by the cluster's multiprocessors.
      terms.streamed = static_cast<double>(net.rows) * net.num_heads * net.head_dim * net.height *
                       net.width * sizeof(float) / plan_.program.chain.blocks;
      return terms;
    }
    if (stage.products[0].operation.attended >= 0) ++terms.sums;  // merged by every block
    const Load& l = loads_[s];
    const double passes = (net.rows + 1) / 2;
    terms.shared = (free_weights ? 0 : l.shared * passes) + l.products / kUnit * sizeof(float);
    terms.products = l.products;
    return terms;
  }

  // When the convolutions of each block of layers are done and told. Each block of the launch
  // computes its own as soon as their inputs have been told at the position before and its own of
  // the blocks of layers before are done; `idle` says since when it has nothing to do.
  std::vector<double> convolved(const std::vector<double>& told, bool free_weights,
                                std::vector<double>& idle) const {
    std::vector<double> done(told.size(), 0);
    for (size_t b = 0; b < plan_.blocks.size(); ++b) {
      for (int32_t s = plan_.blocks[b].first_step; s < plan_.blocks[b].end_step; ++s) {
        const int32_t stage = plan_.steps[s].stage;
        idle[b] = std::max(idle[b], told[stage]) + seconds(stage, free_weights);
        done[stage] = std::max(done[stage], idle[b]);
      }
    }
    return done;
  }

  // Seconds of a position with the chain on a cluster, once positions follow each other evenly:
  // stages begin as inputs, weights and what the convolutions give arrive. A block's weights come
  // from the L2 cache one after another, each asked for when the plan says so and by a warp that
  // tells the convolutions' inputs as well. Another warp fetches what they give, for one block of
  // layers after another, by one trip for 32 flags and one for the values.
  double chain_step(bool free_weights) const {
    const Chain& chain = plan_.program.chain;
    constexpr int kPositions = 8;
    const double rate = kL2BytesPerCycle * card_.clock;
    std::vector<double> idle(chain.blocks, 0);  // when a block's copies are done
    const double passes = (plan_.network.rows + 1) / 2;
    const double reading = free_weights ? 0 : passes / (kSharedBytesPerCycle * card_.clock);
    // When the weights of a block's work have come: of this position, and of the next.
    std::vector<std::vector<double>> landed(chain.blocks, std::vector<double>(chain.max_works, 0));
    std::vector<std::vector<double>> next = landed;
    std::vector<double> told(first_of_chain(), 0), convolving(plan_.blocks.size(), 0);
    double now = 0, asking = 0, fetched = 0, last = 0;
    for (int position = 0; position < kPositions; ++position) {
      last = now;
      const std::vector<double> done = convolved(told, free_weights, convolving);
      for (int32_t s = 0; s < chain.num_steps; ++s) {
        for (int32_t b = 0; b < chain.blocks; ++b) {
          const ChainStep& step = chain_step_of(b, s);
          for (int32_t c = step.first_copy; c < step.end_copy; ++c) {
            const WeightCopy& copy = plan_.chain_copies[plan_.chain_blocks[b].first_copy + c];
            idle[b] = std::max({idle[b], now, asking}) + copy.bytes / rate;
            (copy.ahead ? next : landed)[b][copy.work] = idle[b] + kL2Trip;
          }
        }
        // A step begins with its first weights, and reads others that come later after these.
        double read = 0;
        for (int32_t b = 0; b < chain.blocks; ++b) {
          const ChainStep& step = chain_step_of(b, s);
          double left = kSumLatency + kClusterHandOver;
          for (int32_t w = step.end - 1; w >= step.first; --w) {
            left += bytes_of(b, w) * reading;
            read = std::max(read, landed[b][w] + left);
            if (w == step.first) now = std::max(now, landed[b][w]);
          }
        }
        const ChainStep& step = chain_step_of(0, s);
        if (step.begins >= 0) {
          const int32_t looks = (step.convolving_count + kLanes - 1) / kLanes;
          fetched = std::max(fetched, done[step.begins]) + (looks + 1) * kL2Trip;
          now = std::max(now, fetched);
        }
        now = std::max(now + seconds(first_of_chain() + s, free_weights), read);
        if (step.begins >= 0) {
          // While the outputs are on their way.
          told[step.begins] = now - (step.exchanges ? kClusterHandOver : 0) + kTelling;
          asking = told[step.begins];
        }
      }
      landed.swap(next);
    }
    return now - last;
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

  // Rows whose products a step computes: those after the last 8 are filled up to a power of two.
  static int32_t computed(int32_t rows) {
    const int32_t left = rows % 8;
    return rows - left + (left > 4 ? 8 : left == 3 ? 4 : left);
  }

  void add(const BlockProgram& block) {
    const int32_t rows = plan_.network.rows;
    const int64_t buffer = plan_.program.buffer_floats;
    for (int32_t s = block.first_step; s < block.end_step; ++s) {
      const Step& step = plan_.steps[s];
      Load& most = loads_[step.stage];
      ++most.blocks;
      if (step.kind != StepKind::kProducts) continue;
      Load own;
      int64_t beside = 0;  // inputs that are staged together, as `do_products` does
      for (int32_t w = block.first_work + step.first; w < block.first_work + step.end; ++w) {
        const Work& work = plan_.works[w];
        const double inputs = work.operation.padded_inputs;
        const double unit = inputs * kUnit * plan_.weight_bytes;
        own.shared += (work.resident_end - work.first_unit) * unit;
        own.streamed += (work.end_unit - work.resident_end) * unit;
        own.staged += rows * inputs * sizeof(float);
        const int64_t staged = static_cast<int64_t>(rows) * work.operation.padded_inputs;
        if (own.stagings == 0 || beside + staged > buffer) {
          own.stagings += std::max<double>(1, std::ceil(static_cast<double>(staged) / buffer));
          beside = 0;
        }
        beside += staged;
        own.products += (work.end_unit - work.first_unit) * inputs * kUnit * computed(rows);
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

}  // namespace vqvae2_fast::cuda::sampler
