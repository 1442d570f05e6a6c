// Pixel phase: one row of the map by one cooperative launch. Each block keeps as much of its share
// of the weights in shared memory as fits, reads the rest from the L2 cache, and follows its part
// of the program (program.h) at every position.
#pragma once

#include "attention.cuh"
#include "draw.cuh"
#include "epilogue.cuh"
#include "flags.cuh"
#include "product.cuh"
#include "stage_times.cuh"

namespace vqvae2_fast::cuda::sampler {

constexpr int kMaxThreads = 512;
constexpr int kLine = 128;  // bytes of a cache line

// A block's part of shared memory.
struct BlockMemory {
  const Step* steps;
  const Work* works;
  float* buffer;  // inputs of products, or scratch
  const unsigned char* weights;
};

// Where the inputs of a network row begin; `inputs` is the operation's, at the row of the map.
__device__ __forceinline__ const float* input_of(const Operation& op, const float* inputs,
                                                 Place at) {
  return inputs + at.n * op.input_row + at.j * op.input_column;
}

// Begins to copy the inputs of network rows first .. first + count of an operation to shared
// memory, with zeros for rows without a place. They have arrived after copy_async_wait and a
// barrier.
__device__ __forceinline__ void stage_inputs(const Network& net, const Work& work,
                                             const Places& places, int first, int count,
                                             float* buffer) {
  const Operation& op = work.operation;
  const float* inputs = op.input + places.i % net.slots * op.input_slot;
  const int padded = op.padded_inputs;
  const int step = blockDim.x;
  if (op.by_four) {
    const int in_row = padded / kGroup, items = count * in_row;
    for (int item = threadIdx.x; item < items; item += step) {
      const int k = item % in_row * kGroup;
      const Place at = places.at(first + item / in_row);
      const bool valid = k < op.inputs;
      copy_async_or_zero<16>(buffer + kGroup * item,
                             valid ? input_of(op, inputs, at) + k : op.input, valid);
    }
    return;
  }
  // A thread's loads come before its stores, so that their latencies overlap.
  constexpr int kAhead = 4;
  const int plain = op.attended < 0 ? op.inputs : op.attended, items = count * padded;
  for (int begin = threadIdx.x; begin < items; begin += kAhead * step) {
    float values[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int item = begin + a * step, r = item / padded, k = item % padded;
      values[a] = 0.0f;
      if (item < items && k < plain) {
        values[a] = fresh(input_of(op, inputs, places.at(first + r)) + k);
      }
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int item = begin + a * step, k = item % padded;
      if (item < items && (k < plain || k >= op.inputs)) buffer[item] = values[a];
    }
  }
  // With few rows, their attended values are merged here rather than in a separate stage.
  const int merged = op.inputs - plain;
  for (int item = threadIdx.x; item < count * merged; item += step) {
    const int r = item / merged, c = item % merged;
    buffer[r * padded + plain + c] = elu(attended(net, places.at(first + r), c, GlobalMemory()));
  }
}

// Sums of a unit for up to ROWS network rows, those of row r in lanes r * 32 / ROWS and on.
template <int ROWS, typename Weight>
__device__ __forceinline__ float2 sum_unit(const Weight* weights, const float* inputs, int rows,
                                           int padded_inputs, int lane) {
  float2 sums[ROWS];
  add_products<ROWS>(weights, inputs, padded_inputs, rows, padded_inputs, lane, sums);
  return add_lanes<ROWS>(sums, lane);
}

// A block's units of an operation for network rows first .. first + count, whose inputs lie at
// `inputs`. A warp's item is a unit for 8 network rows, or for all that are left, so weights are
// read once for every 8; its first is number `item`. Returns how many items there are.
template <typename Weight>
__device__ __forceinline__ int multiply(const Network& net, const Work& work, const Places& places,
                                        int first, int count, const float* all_inputs,
                                        const unsigned char* resident, int item) {
  const Operation& op = work.operation;
  const int lane = threadIdx.x % kLanes, warps = blockDim.x / kLanes;
  const int unit_weights = op.padded_inputs * kUnit;
  const int groups = (count + 7) / 8;
  const int items = (work.end_unit - work.first_unit) * groups;
  for (; item < items; item += warps) {
    const int unit = work.first_unit + item / groups, group = item % groups;
    const Weight* weights =
        static_cast<const Weight*>(op.weights) + static_cast<int64_t>(unit) * unit_weights;
    if (unit < work.resident_end) {
      weights = reinterpret_cast<const Weight*>(resident + work.shared_offset) +
                (unit - work.first_unit) * unit_weights;
    }
    const int r = 8 * group, rows = min(8, count - r);
    const int computed = rows > 4 ? 8 : rows == 3 ? 4 : rows;  // a power of two
    const int lanes_of_row = kLanes / computed, row = lane / lanes_of_row;
    const Place at = places.at(first + r + min(row, rows - 1));
    const bool finishes = lane % lanes_of_row == 0 && row < rows;
    Addends addends;
    if (finishes) addends = load_addends(net, op, at, unit, GlobalMemory());
    const float* inputs = all_inputs + r * op.padded_inputs;
    float2 sum;
    if (computed == 8) {
      sum = sum_unit<8>(weights, inputs, rows, op.padded_inputs, lane);
    } else if (computed == 4) {
      sum = sum_unit<4>(weights, inputs, rows, op.padded_inputs, lane);
    } else if (computed == 2) {
      sum = sum_unit<2>(weights, inputs, rows, op.padded_inputs, lane);
    } else {
      sum = sum_unit<1>(weights, inputs, rows, op.padded_inputs, lane);
    }
    if (finishes) finish_unit(net, op, at, unit, sum, addends, GlobalMemory());
  }
  return items;
}

// A block's works of a step. Works whose inputs fit into the buffer side by side are staged
// together and wait for their inputs once. One that does not fit even by itself is computed in
// tiles of network rows.
template <typename Weight>
__device__ __forceinline__ void do_products(const Network& net, const Step& step,
                                            const Places& places, const BlockMemory& memory,
                                            int buffer_floats) {
  const int warp = threadIdx.x / kLanes, warps = blockDim.x / kLanes;
  for (int begin = step.first, end = begin; begin < step.end; begin = end) {
    int together = 0, tile = net.rows;
    for (; end < step.end; ++end) {
      together += memory.works[end].operation.padded_inputs * net.rows;
      if (together > buffer_floats) break;
    }
    if (end == begin) tile = buffer_floats / memory.works[end++].operation.padded_inputs;
    for (int first = 0; first < net.rows; first += tile) {
      const int count = min(tile, net.rows - first);
      float* inputs = memory.buffer;
      for (int w = begin; w < end; ++w) {
        stage_inputs(net, memory.works[w], places, first, count, inputs);
        inputs += count * memory.works[w].operation.padded_inputs;
      }
      copy_async_commit();
      copy_async_wait<0>();  // for the resident weights too, at a block's first products
      __syncthreads();
      inputs = memory.buffer;
      int done = 0;  // items of the works before; the next warp continues from there
      for (int w = begin; w < end; ++w) {
        const int item = (warp + warps - done % warps) % warps;
        done += multiply<Weight>(net, memory.works[w], places, first, count, inputs, memory.weights,
                                 item);
        inputs += count * memory.works[w].operation.padded_inputs;
      }
      __syncthreads();  // the buffer is no longer read
    }
  }
}

// Computes x of samples first .. end, from the sums of the rows above and the codes to the
// left, for the first block.
__device__ __forceinline__ void begin_samples(const Network& net, const Step& step,
                                              const Places& places) {
  const int channels = net.channels;
  const int count = (step.end - step.first) * channels;
  for (int item = threadIdx.x; item < count; item += blockDim.x) {
    const Place at = places.at(step.first + item / channels);
    const int sample = at.n, c = item % channels;
    const int64_t* codes =
        net.codes + (static_cast<int64_t>(sample) * net.height + at.i) * net.width;
    float x = net.stem_row[(static_cast<int64_t>(sample) * net.width + at.j) * channels + c];
    for (int t = 0; t < net.num_stem_left; ++t) {
      const int column = at.j - net.num_stem_left + t;
      if (column < 0) continue;
      const int64_t code = fresh(codes + column);
      x += net.stem_left[(t * net.num_embeddings + code) * channels + c];
    }
    for (int r = at.n; r < net.rows; r += net.batch) {
      begin_block(net, places.at(r), 0, c, x, GlobalMemory());
    }
  }
}

__device__ __forceinline__ void attend(const Network& net, const Step& step, const Places& places,
                                       float* buffer) {
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int warps = blockDim.x / kLanes;
  const int chunks = chunks_before(places.i * net.width + places.j);
  const int count = net.rows * net.num_heads * chunks;
  // Items are dealt out to all warps of the stage's blocks: step.first of step.end blocks.
  for (int item = warp * step.end + step.first; item < count; item += warps * step.end) {
    const int chunk = item % chunks, head = item / chunks % net.num_heads;
    const Place at = places.at(item / chunks / net.num_heads);
    attend_chunk(net, at, step.index, head, chunk, buffer + warp * kChunk, lane, GlobalMemory());
  }
}

// All threads of the stage's blocks compute the attended values of all network rows.
__device__ __forceinline__ void merge_heads(const Network& net, const Step& step,
                                            const Places& places) {
  const int all = net.num_heads * net.head_dim, count = net.rows * all;
  const int threads = blockDim.x * step.end;
  for (int item = step.first * blockDim.x + threadIdx.x; item < count; item += threads) {
    const Place at = places.at(item / all);
    const int c = item % all;
    net.out_inputs[at.n * net.out_stride + net.channels + c] =
        elu(attended(net, at, c, GlobalMemory()));
  }
}

// Prefetches the weights of a step that are not in shared memory into the L2 cache.
template <typename Weight>
__device__ __forceinline__ void ask_for_weights(const Step& step, const Work* works) {
  if (step.kind != StepKind::kProducts) return;
  for (int w = step.first; w < step.end; ++w) {
    const Work& work = works[w];
    const int64_t unit_bytes =
        static_cast<int64_t>(work.operation.padded_inputs) * kUnit * sizeof(Weight);
    const unsigned char* weights = static_cast<const unsigned char*>(work.operation.weights);
    const int64_t end = work.end_unit * unit_bytes;
    for (int64_t at = work.resident_end * unit_bytes + threadIdx.x * kLine; at < end;
         at += blockDim.x * kLine) {
      ask_for(weights + at);
    }
  }
}

// Begins to copy a work's resident weights to shared memory; `do_products` waits for them.
template <typename Weight>
__device__ __forceinline__ void copy_resident_weights(const Work& work, unsigned char* weights) {
  constexpr int kCopy = 16;
  const int64_t unit_bytes =
      static_cast<int64_t>(work.operation.padded_inputs) * kUnit * sizeof(Weight);
  const int64_t bytes = (work.resident_end - work.first_unit) * unit_bytes;
  const unsigned char* from =
      static_cast<const unsigned char*>(work.operation.weights) + work.first_unit * unit_bytes;
  unsigned char* to = weights + work.shared_offset;
  for (int64_t at = threadIdx.x * kCopy; at < bytes; at += blockDim.x * kCopy) {
    copy_async<kCopy>(to + at, from + at);
  }
}

// A block's part of the program at row i. With kOnlyProducts it has no other steps.
template <typename Weight, bool kOnlyProducts = false>
__device__ __forceinline__ void follow_program(const Program& program, const unsigned char* memory,
                                               int i, unsigned char* shared) {
  const Network& net = program.network;
  const int block = blockIdx.x;
  const BlockProgram own =
      reinterpret_cast<const BlockProgram*>(memory + program.blocks_offset)[block];
  const int num_steps = own.end_step - own.first_step, num_works = own.end_work - own.first_work;
  Work* works = reinterpret_cast<Work*>(shared + program.program_offset);
  Step* steps = reinterpret_cast<Step*>(works + program.max_works);
  const Step* all_steps = reinterpret_cast<const Step*>(memory + program.steps_offset);
  const Work* all_works = reinterpret_cast<const Work*>(memory + program.works_offset);
  for (int s = threadIdx.x; s < num_steps; s += blockDim.x)
    steps[s] = all_steps[own.first_step + s];
  for (int w = threadIdx.x; w < num_works; w += blockDim.x)
    works[w] = all_works[own.first_work + w];
  __syncthreads();
  for (int w = 0; w < num_works; ++w) {
    copy_resident_weights<Weight>(works[w], shared + program.weights_offset);
  }
  const BlockMemory mine = {.steps = steps,
                            .works = works,
                            .buffer = reinterpret_cast<float*>(shared),
                            .weights = shared + program.weights_offset};
  copy_async_commit();

  const uint32_t stages = program.num_stages;
  for (int t = 0; t < net.width; ++t) {
    const Places places = {i, t};
    // Stage s of this step is number `before` + s + 1 of the map.
    const uint32_t before = (static_cast<uint32_t>(i) * net.width + t) * stages;
    for (int s = 0; s < num_steps; ++s) {
      const Step& step = steps[s];
      // At the first step, the launch before has done everything of the step before.
      if (step.wait_count > 0 && (!step.wait_before || t > 0)) {
        const uint32_t number = before - (step.wait_before ? stages : 0) + step.wait_stage + 1;
        wait_for_blocks(net.progress, step.wait_first, step.wait_count, number, step.stage);
      }
      note_time(program, t, step.stage, Moment::kReady);
      // While this step's weights go from the L2 cache to the multiprocessors, the next one's come
      // from memory.
      ask_for_weights<Weight>(steps[s + 1 < num_steps ? s + 1 : 0], works);
      switch (kOnlyProducts ? StepKind::kProducts : step.kind) {
        case StepKind::kProducts:
          do_products<Weight>(net, step, places, mine, program.buffer_floats);
          break;
        case StepKind::kBegin:
          begin_samples(net, step, places);
          break;
        case StepKind::kAttend:
          attend(net, step, places, mine.buffer);
          break;
        case StepKind::kMergeHeads:
          merge_heads(net, step, places);
          break;
        case StepKind::kDraw: {
          const DrawScratch parts = draw_scratch(mine.buffer, net.num_embeddings, blockDim.x);
          for (int r = step.first; r < step.end; ++r) {
            draw_code(net, places.at(r), parts, GlobalMemory());
          }
          break;
        }
      }
      note_time(program, t, step.stage, Moment::kComputed);
      tell_done(net.progress + block, before + step.stage + 1);
      note_time(program, t, step.stage, Moment::kTold);
    }
  }
}

template <typename Weight>
__global__ void __launch_bounds__(kMaxThreads, 1)
    pixel_phase_kernel(const Program program, const unsigned char* memory, int i) {
  VQ_DYNAMIC_SHARED(unsigned char, shared);
  follow_program<Weight>(program, memory, i, shared);
}

}  // namespace vqvae2_fast::cuda::sampler
