// What each block of the persistent kernel does at a position, as data: the planner writes it, the
// kernel follows it.
//
// A *stage* is a set of matrix products (or of heads, or of samples) that do not depend on each
// other. Outputs of products come in *units* of two columns: two neighbouring outputs, or a value
// and its gate. A warp computes a unit: each lane adds every 32nd group of inputs in ascending
// order, then lanes are added by halves. That order depends only on the number of inputs, so the
// bits of a sum do not depend on the batch, the grid or the place of the weights.
//
// A block's *step* is its share of a stage. A block announces that it has done a step by writing
// its number to its own word of `Network::progress`, and waits only for the blocks that computed
// what it is about to read.
#pragma once

#include "network.h"

namespace vqvae2_fast::cuda::sampler {

constexpr int kUnit = 2;
constexpr int kLanes = 32;
constexpr int kGroup = 4;                         // neighbouring inputs of a lane
constexpr int kInputChunk = kLanes * kGroup;      // inputs of a warp at a time; the rest goes by 32
constexpr int kFilterWords = 3 * (256 + kLanes);  // of shared memory, for top-k and top-p

// What happens to a unit's sums (v0, v1) of row n.
enum class Epilogue : int32_t {
  kStore,     // output = v
  kActivate,  // output = ELU(v)
  kKeyValue,  // into the caches of keys and values; index = block
  kMerge,     // x = v, which begins block index + 1
  // From here on the unit is a value and its gate: gate = v0 * sigmoid(v1).
  kGate,          // output = gate
  kGateLayer,     // y += gate, and on to the next layer; index = layer
  kGateResidual,  // output = residual + gate
  kGateBlock,     // x = y + gate, which begins block index + 1
  kGateOutput,    // x += gate, activated = ELU(x)
};

// n products of one matrix: sums over `inputs` values of each network row.
struct Operation {
  const float* input;  // + n * input_row + column * input_column + slot * input_slot
  int64_t input_row;
  const float* initial;   // + n * initial_row + column * initial_column + 2 * unit
  const float* residual;  // + n * residual_row + channel
  float* output;  // + n * output_row + column * output_column + slot * output_slot + channel
  int64_t output_row;
  const void* weights;  // [units, padded inputs, 2] in the order of cuda_pack.py
  int32_t initial_row, residual_row;
  int32_t input_column, initial_column, output_column;
  int32_t input_slot, output_slot;  // slot: the row's in the rings
  int32_t inputs, padded_inputs;
  int32_t attended;  // inputs from here on are merged from partial results of attention; or -1
  int32_t by_four;   // inputs may be read four at a time, up to three beyond the last
  int32_t outputs;   // of the matrix; units * 2 or one less
  Epilogue epilogue;
  int32_t index;
};

// One block's units of an operation.
struct Work {
  Operation operation;
  int32_t first_unit, end_unit;
  int32_t resident_end;   // units before it lie in shared memory,
  int32_t shared_offset;  // from this byte on
};

enum class StepKind : int32_t { kProducts, kBegin, kAttend, kMergeHeads, kDraw };

struct Step {
  StepKind kind;
  int32_t stage;
  // The step may begin when blocks wait_first .. + wait_count have done wait_stage, at this
  // position or, with wait_before, at the one before. wait_count = 0: at once.
  int32_t wait_stage, wait_before, wait_first, wait_count;
  int32_t first, end;  // works of the block, or samples, or its rank among `end` blocks
  int32_t index;       // block of the network
};

// One block's part of the program.
struct BlockProgram {
  int32_t first_step, end_step, first_work, end_work;
};

// The part of the program for the chain on a cluster (chain.h).
struct Chain {
  int32_t blocks;          // of the cluster; 0: no cluster
  int32_t convolving;      // blocks after them, which compute the convolutions
  int32_t num_steps;       // the stages after those of the convolutions
  int32_t resident;        // all weights stay in shared memory
  const float* gated;      // what the convolutions gave, in global memory
  int32_t* codes;          // [B, W] of the row, in shared memory
  float* begun;            // [B, C] of the first block, before the convolutions are there
  int32_t state_bytes;     // of shared memory, barriers included; then come scratch,
  int32_t scratch_offset;  // the block's program and its weights
  int32_t program_offset, weights_offset;
  int32_t max_works;
  int64_t blocks_offset, steps_offset, works_offset, copies_offset;  // of the program in memory
};

// What the kernel takes by value; the arrays lie at these bytes of the program in memory.
struct Program {
  Network network;
  int32_t grid, threads, num_stages;
  int32_t buffer_floats;  // for activations in shared memory
  int32_t shared_bytes;   // in all
  int32_t max_steps, max_works;
  int32_t program_offset, weights_offset;  // in shared memory
  int64_t blocks_offset, steps_offset, works_offset;
  Chain chain;
};

}  // namespace vqvae2_fast::cuda::sampler
