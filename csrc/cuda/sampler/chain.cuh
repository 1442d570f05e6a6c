// Pixel phase on clusters (compute capability 9.0): one cluster computes the chain of stages
// (chain.h), the other blocks of the launch the convolutions beside it.
//
// Order. A block that has all outputs of a stage knows that all units of the stage have been
// computed, so everything that they read may be overwritten: each output is sent after its warp has
// read. Inputs of the convolutions, and keys and values, go through global memory, and are
// published by the flags that the convolutions wait for, for each block of layers, and by arrivals
// at a barrier, once a position.
//
// Warps. All but the last two compute units. The one before the last asks for weights and tells
// others. The last follows the convolutions' flags and fetches what they gave; it has no part in
// the others' barriers, so that nobody waits for it but those who need what it fetches.
#pragma once

#include "chain.h"
#include "chain_memory.cuh"
#include "pixel_phase.cuh"

namespace vqvae2_fast::cuda::sampler {

// A block of the chain.
struct ChainRun {
  const Program& program;
  const Network& net;
  const Chain& chain;
  unsigned char* shared;
  Arrivals *outputs, *fetched, *written;  // [kMostChainSteps]
  Arrivals* cached;
  Arrivals* weights_here;  // [max_works]
  ChainStep* steps;
  Work* works;
  WeightCopy* copies;
  int rank, warp, lane;
  int computing;  // warps that compute units
  int num_copies;

  __device__ __forceinline__ bool helps() const { return warp == computing; }
  __device__ __forceinline__ bool fetches() const { return warp > computing; }
  // The threads that follow the chain: of all warps but the last.
  __device__ __forceinline__ int following() const { return (computing + 1) * kLanes; }
  __device__ __forceinline__ OwnMemory own(bool owner) const { return {shared, owner}; }
};

// All lanes of a warp call it. They leave their loops one by one, and meet before what follows.
__device__ __forceinline__ void wait_in_chain(Arrivals* arrivals, uint32_t parity, int stage) {
  if (!wait_for_phase<VQ_SPIN_LIMIT>(arrivals, parity)) {
    printf("sampler: block %d of the chain waits in stage %d\n", static_cast<int>(blockIdx.x),
           stage);
    __trap();
  }
  __syncwarp();
}

__device__ __forceinline__ ChainRun start_chain(const Program& program, const unsigned char* memory,
                                                unsigned char* shared) {
  const Chain& chain = program.chain;
  Arrivals* const arrivals = reinterpret_cast<Arrivals*>(shared);
  ChainRun run = {.program = program,
                  .net = program.network,
                  .chain = chain,
                  .shared = shared,
                  .outputs = arrivals,
                  .fetched = arrivals + kMostChainSteps,
                  .written = arrivals + 2 * kMostChainSteps,
                  .cached = arrivals + 3 * kMostChainSteps,
                  .weights_here = nullptr,
                  .steps = nullptr,
                  .works = nullptr,
                  .copies = nullptr,
                  .rank = cluster_rank(),
                  .warp = static_cast<int>(threadIdx.x) / kLanes,
                  .lane = static_cast<int>(threadIdx.x) % kLanes,
                  .computing = static_cast<int>(blockDim.x) / kLanes - 2,
                  .num_copies = 0};
  run.works = reinterpret_cast<Work*>(shared + chain.program_offset);
  run.copies = reinterpret_cast<WeightCopy*>(run.works + chain.max_works);
  run.weights_here = reinterpret_cast<Arrivals*>(run.copies + chain.max_works);
  run.steps = reinterpret_cast<ChainStep*>(run.weights_here + chain.max_works);
  const ChainBlock own =
      reinterpret_cast<const ChainBlock*>(memory + chain.blocks_offset)[run.rank];
  run.num_copies = own.end_copy - own.first_copy;
  const ChainStep* steps =
      reinterpret_cast<const ChainStep*>(memory + chain.steps_offset) + run.rank * chain.num_steps;
  const Work* works = reinterpret_cast<const Work*>(memory + chain.works_offset) + own.first_work;
  const WeightCopy* copies =
      reinterpret_cast<const WeightCopy*>(memory + chain.copies_offset) + own.first_copy;
  const int threads = blockDim.x;
  for (int s = threadIdx.x; s < chain.num_steps; s += threads) run.steps[s] = steps[s];
  for (int w = threadIdx.x; w < own.end_work - own.first_work; w += threads) {
    run.works[w] = works[w];
    run.copies[w] = copies[w];
  }
  // What lies behind a row's last input is multiplied by weights too.
  float* const state = reinterpret_cast<float*>(shared + kChainBarrierBytes);
  for (int k = threadIdx.x; k < (chain.state_bytes - kChainBarrierBytes) / 4; k += threads) {
    state[k] = 0.0f;
  }
  if (threadIdx.x == 0) {
    for (int s = 0; s < chain.num_steps; ++s) {
      if (steps[s].exchanges) arrivals_init(run.outputs + s, 1);
      if (steps[s].begins >= 0) {
        arrivals_init(run.fetched + s, 1);
        arrivals_init(run.written + s, run.computing);
      }
    }
    for (int w = 0; w < own.end_work - own.first_work; ++w) arrivals_init(run.weights_here + w, 1);
    arrivals_init(run.cached, chain.blocks);
    arrivals_init_done();
  }
  cluster_sync();
  return run;
}

// By one thread of the helping warp.
__device__ __forceinline__ void ask_for(const ChainRun& run, const WeightCopy& copy) {
  Arrivals* const arrivals = run.weights_here + copy.work;
  arrive_expecting(arrivals, copy.bytes);
  copy_bulk(run.shared + run.chain.weights_offset + copy.to, copy.from, copy.bytes, arrivals);
}

// By the last warp, through the whole row: fetches what the convolutions of a block of layers gave
// as soon as all of it is there. They wrote it after every block had read that of the position
// before and had published what followed from it.
__device__ __forceinline__ void fetch_convolved(const ChainRun& run, int i) {
  const Network& net = run.net;
  const int values = net.layers_per_block * net.rows * net.channels;  // of a block of layers
  for (int t = 0; t < net.width; ++t) {
    const uint32_t before = (static_cast<uint32_t>(i) * net.width + t) * run.program.num_stages;
    for (int s = 0; s < run.chain.num_steps; ++s) {
      const ChainStep& step = run.steps[s];
      if (step.begins < 0) continue;
      poll_blocks(net.progress, step.convolving_first, step.convolving_count,
                  before + step.begins + 1, step.stage, run.lane, kLanes);
      __syncwarp();
      float* const to = run.own(false).at(net.gated) + step.begins * values;
      const float* const from = run.chain.gated + step.begins * values;
      for (int k = kGroup * run.lane; k < values; k += kGroup * kLanes) {
        copy_async<16>(to + k, from + k);
      }
      copy_async_commit();
      copy_async_wait<0>();
      __syncwarp();
      if (run.lane == 0) arrive(run.fetched + s);
    }
  }
}

// What every block computes for itself from the codes to the left, and from what the convolutions
// gave.
__device__ __forceinline__ void begin_position(const ChainRun& run, const Places& places,
                                               Arrivals* fetched, uint32_t parity, int stage) {
  const Network& net = run.net;
  const Chain& chain = run.chain;
  const OwnMemory own = run.own(false);
  const int32_t* const codes = own.at(chain.codes);
  const int channels = net.channels, count = net.batch * channels, threads = run.following();
  for (int item = threadIdx.x; item < count; item += threads) {
    const int sample = item / channels, c = item % channels;
    float x = net.stem_row[(static_cast<int64_t>(sample) * net.width + places.j) * channels + c];
    // Loads come before sums, so that their latencies overlap.
    constexpr int kAhead = 4;
    for (int first = max(0, net.num_stem_left - places.j); first < net.num_stem_left;
         first += kAhead) {
      float values[kAhead] = {};
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        const int t = first + a;
        if (t >= net.num_stem_left) break;
        const int64_t code = codes[sample * net.width + places.j - net.num_stem_left + t];
        values[a] = net.stem_left[(t * net.num_embeddings + code) * channels + c];
      }
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        if (first + a < net.num_stem_left) x += values[a];
      }
    }
    own.put(chain.begun + item, x);
  }
  wait_in_chain(fetched, parity, stage);
  for (int item = threadIdx.x; item < count; item += threads) {
    const int c = item % channels;
    const float x = own.get(chain.begun + item);
    for (int r = item / channels; r < net.rows; r += net.batch) {
      begin_block(net, places.at(r), 0, c, x, run.own(c % chain.blocks == run.rank));
    }
  }
  sync_first(threads);
}

// A unit for ROWS network rows from r on, whose outputs lane k sends to block k.
template <int ROWS, typename Weight>
__device__ __forceinline__ void chain_unit(const ChainRun& run, const Operation& op,
                                           const Places& places, int unit, int r,
                                           const Weight* weights, Arrivals* outputs) {
  const Network& net = run.net;
  const BlockMemoryOf to = {{run.shared, run.lane == 0}, outputs, run.lane};
  const bool sends = run.lane < run.chain.blocks;
  // Biases are the same for all rows.
  float2 initial = make_float2(0.0f, 0.0f);
  float residuals[ROWS] = {};
#pragma unroll
  for (int k = 0; k < ROWS; ++k) {
    if (!sends) break;
    const Addends addends = load_addends(net, op, places.at(r + k), unit, to);
    initial = addends.initial;
    residuals[k] = addends.residual;
  }
  const int row = static_cast<int>(op.input_row);
  float2 sums[ROWS];
  add_products<ROWS>(weights, to.at(op.input) + r * row, row, ROWS, op.padded_inputs, run.lane,
                     sums);
  const float2 sum = add_lanes<ROWS>(sums, run.lane);
  __syncwarp();  // all lanes have read
#pragma unroll
  for (int k = 0; k < ROWS; ++k) {
    const float v0 = __shfl_sync(0xFFFFFFFFu, sum.x, k * (kLanes / ROWS));
    const float v1 = __shfl_sync(0xFFFFFFFFu, sum.y, k * (kLanes / ROWS));
    const Addends addends = {initial, residuals[k]};
    if (sends) finish_unit(net, op, places.at(r + k), unit, make_float2(v0, v1), addends, to);
  }
}

// The block's units of a step. Those of a work begin when its weights are there.
template <typename Weight>
__device__ __forceinline__ void chain_products(const ChainRun& run, const ChainStep& step,
                                               const Places& places, uint32_t parity,
                                               Arrivals* outputs) {
  const int rows = run.net.rows;
  const int pairs = rows / 2, groups = pairs + rows % 2;
  int done = 0;  // items of the works before; the next warp continues from there
  for (int w = step.first; w < step.end; ++w) {
    const Work& work = run.works[w];
    const Operation& op = work.operation;
    const int items = (work.end_unit - work.first_unit) * groups;
    const int begin = (run.warp + run.computing - done % run.computing) % run.computing;
    if (begin < items) {
      wait_in_chain(run.weights_here + w, run.chain.resident ? 0 : parity, step.stage);
    }
    for (int item = begin; item < items; item += run.computing) {
      const int unit = item / groups, group = item % groups;
      const Weight* weights = reinterpret_cast<const Weight*>(
                                  run.shared + run.chain.weights_offset + work.shared_offset) +
                              unit * op.padded_inputs * kUnit;
      if (group < pairs) {
        chain_unit<2>(run, op, places, work.first_unit + unit, 2 * group, weights, outputs);
      } else {
        chain_unit<1>(run, op, places, work.first_unit + unit, rows - 1, weights, outputs);
      }
    }
    done += items;
  }
}

// The block's items of a stage of heads; the last position's keys and values are there.
__device__ __forceinline__ void chain_heads(const ChainRun& run, const ChainStep& step,
                                            const Places& places, Arrivals* outputs) {
  const Network& net = run.net;
  float* const scratch = reinterpret_cast<float*>(run.shared + run.chain.scratch_offset);
  const ClusterMemory to = {{run.shared, false}, outputs, run.chain.blocks};
  const int chunks = chunks_before(places.i * net.width + places.j);
  const int items = net.rows * net.num_heads * chunks;
  for (int item = run.warp * run.chain.blocks + run.rank; item < items;
       item += run.computing * run.chain.blocks) {
    attend_chunk(net, places.at(item / chunks / net.num_heads), step.index,
                 item / chunks % net.num_heads, item % chunks, scratch + run.warp * kChunk,
                 run.lane, to);
  }
}

// Every block merges the attended values for itself.
__device__ __forceinline__ void merge_in_chain(const ChainRun& run, const Places& places) {
  const Network& net = run.net;
  const OwnMemory own = run.own(false);
  const int all = net.num_heads * net.head_dim, count = net.rows * all;
  for (int item = threadIdx.x; item < count; item += run.following()) {
    const int r = item / all, c = item % all;
    own.put(net.out_inputs + r * net.out_stride + net.channels + c,
            elu(attended(net, places.at(r), c, own)));
  }
  sync_first(run.following());
}

// Every block draws the same codes; the first writes them.
__device__ __forceinline__ void draw_in_chain(const ChainRun& run, const Places& places) {
  const Network& net = run.net;
  const OwnMemory own = run.own(run.rank == 0);
  float* const scratch = reinterpret_cast<float*>(run.shared + run.chain.scratch_offset);
  int32_t* const codes = own.at(run.chain.codes);
  for (int b = 0; b < net.batch; ++b) {
    const DrawScratch parts = draw_scratch(scratch, net.num_embeddings, run.following());
    const int code = draw_code(net, places.at(b), parts, own);
    if (threadIdx.x == 0) codes[b * net.width + places.j] = code;
  }
  sync_first(run.following());  // all know the codes
}

// The steps of a row, by all warps but the last.
template <typename Weight>
__device__ __forceinline__ void follow_chain(const ChainRun& run, int i) {
  const Network& net = run.net;
  const Chain& chain = run.chain;
  const bool first_helper = run.helps() && run.lane == 0;
  const auto note = [&](int t, int stage, Moment moment) {
    note_time(run.program, t, stage, moment, run.following());
  };
  for (int c = 0; first_helper && c < run.num_copies; ++c) {
    if (run.copies[c].ahead) ask_for(run, run.copies[c]);
  }
  for (int t = 0; t < net.width; ++t) {
    const Places places = {i, t};
    const uint32_t before = (static_cast<uint32_t>(i) * net.width + t) * run.program.num_stages;
    const uint32_t parity = t & 1;
    for (int s = 0; s < chain.num_steps; ++s) {
      const ChainStep& step = run.steps[s];
      Arrivals* const outputs = run.outputs + s;
      const bool attends = step.kind == StepKind::kAttend;
      if (s > 0 && run.steps[s - 1].exchanges) wait_in_chain(outputs - 1, parity, step.stage);
      note(t, step.stage, Moment::kReady);
      if (first_helper) {
        if (step.exchanges) {
          const int parts = attends ? chunks_before(i * net.width + t) : 1;
          arrive_expecting(outputs, step.bytes * parts);
        }
        // The block's units of the step before have been computed: their weights may go.
        async_proxy_fence();
        for (int c = step.first_copy; c < step.end_copy; ++c) {
          if (!run.copies[c].ahead || t + 1 < net.width) ask_for(run, run.copies[c]);
        }
      }
      switch (step.kind) {
        case StepKind::kBegin:
          begin_position(run, places, run.fetched + s, parity, step.stage);
          break;
        case StepKind::kAttend:
          if (t > 0) wait_in_chain(run.cached, parity ^ 1, step.stage);
          if (!run.helps()) chain_heads(run, step, places, outputs);
          break;
        case StepKind::kDraw:
          draw_in_chain(run, places);
          if (net.num_heads > 0 && run.helps() && run.lane < chain.blocks) {
            arrive_at(run.cached, run.lane);
          }
          break;
        default:
          if (step.end > step.first && run.works[step.first].operation.attended >= 0) {
            merge_in_chain(run, places);
          }
          if (!run.helps()) {
            if (step.begins >= 0) wait_in_chain(run.fetched + s, parity, step.stage);
            chain_products<Weight>(run, step, places, parity, outputs);
          }
      }
      note(t, step.stage, Moment::kComputed);
      if (step.begins >= 0) {
        if (!run.helps()) {
          __syncwarp();
          if (run.lane == 0) arrive(run.written + s);
        } else {
          wait_in_chain(run.written + s, parity, step.stage);
          if (run.lane == 0) store_release(net.progress + run.rank, before + step.stage + 1);
        }
      }
      note(t, step.stage, Moment::kTold);
    }
  }
}

template <typename Weight>
__device__ __forceinline__ void run_chain(const Program& program, const unsigned char* memory,
                                          int i, unsigned char* shared) {
  const ChainRun run = start_chain(program, memory, shared);
  if (run.fetches()) {
    fetch_convolved(run, i);
  } else {
    follow_chain<Weight>(run, i);
  }
  cluster_sync();  // no block leaves while others write to it
}

template <typename Weight>
__global__ void __launch_bounds__(kMaxThreads, 1)
    pixel_cluster_kernel(const Program program, const unsigned char* memory, int i) {
  VQ_DYNAMIC_SHARED(unsigned char, shared);
  if (static_cast<int>(blockIdx.x) < program.chain.blocks) {
    run_chain<Weight>(program, memory, i, shared);
  } else {
    follow_program<Weight, true>(program, memory, i, shared);
  }
}

}  // namespace vqvae2_fast::cuda::sampler
