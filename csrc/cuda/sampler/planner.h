// Plans a draw: which block of the persistent kernel computes which outputs, which of its weights
// stay in shared memory, and which blocks wait for which. Plain C++; the kernels run what is
// planned here.
#pragma once

#include <string>
#include <vector>

#include "chain.h"
#include "program.h"
#include "row_tiles.h"
#include "values.h"

namespace vqvae2_fast::cuda::sampler {

// Shared memory that a plan leaves free in every block: debuggers and sanitizers take some, and
// without it a kernel that just fits does not launch under them.
constexpr int32_t kSharedMargin = 1 << 10;

// The part of a card that the plan depends on.
struct Card {
  int32_t blocks;        // of the persistent launch, all resident: one per multiprocessor
  int32_t threads;       // of a block
  int32_t shared_bytes;  // that a block may have
  int32_t row_blocks;    // that the row phase has at once: all multiprocessors, with clusters too
  int32_t cluster;       // blocks of the cluster that computes the chain; 0: all compute all of it
};

// One product of a stage, before it is shared out.
struct Product {
  Operation operation;
  int32_t units;
  const char* name;
};

struct Stage {
  const char* name;
  StepKind kind;
  std::vector<Product> products;
  int32_t index = 0;         // block of the network
  int32_t wait_stage = -1;   // -1: at once
  bool wait_before = false;  // at the position before
  int32_t first_block = 0;
  int32_t blocks = 0;  // that take part, from the first on
};

// The row phase: row products at row i are these, with segments set by `at_row`.
struct RowPhase {
  RowMode mode;
  RowTile tile, condition_tile;
  RowProduct conv1, conv2, condition;  // condition.layers = 0 without
  int32_t rows_above, first_column, down;
  int32_t condition_row;  // floats of a row of features

  RowProduct at_row(const RowProduct& product, int slots, const Ring& ring, int i) const;
};

// Memory that only operations refer to.
struct Scratch {
  float* gated;                                // what the convolutions give, [layers, N, C]
  float *key_inner, *query_inner, *out_inner;  // [N, inner_row]
  float *key_features, *query_features;        // [N, joined_stride], [N, merged_stride]
  int64_t inner_row;
};

// Units of a stage's products, one after another, cut into one run for each block.
struct Run {
  int32_t product, first_unit, end_unit;
};
using Runs = std::vector<std::vector<Run>>;  // [block]
Runs cut(const std::vector<Product>& products, const std::vector<double>& shares);
int64_t unit_bytes(const Operation& operation, int32_t weight_bytes);

struct Plan {
  Card card;
  int32_t weight_bytes;  // of one weight of the pixel phase: 4 or 2
  Network network;
  Scratch scratch;
  RowPhase row_phase;
  std::vector<Stage> stages;
  Program program;
  std::vector<BlockProgram> blocks;
  std::vector<Step> steps;
  std::vector<Work> works;
  // Of the chain on a cluster.
  std::vector<ChainBlock> chain_blocks;
  std::vector<ChainStep> chain_steps;  // [blocks of the cluster, steps]
  std::vector<Work> chain_works;
  std::vector<WeightCopy> chain_copies;
  int64_t workspace_bytes;

  // Addresses in `values` may be 0 where only sizes are wanted.
  explicit Plan(const Values& values);

  // The first stages, if convolutions run in parallel with the chain; on clusters those of each
  // block of layers are one.
  int32_t convolution_stages() const {
    if (!network.side_by_side) return 0;
    return card.cluster > 0 ? network.num_blocks : 1;
  }

 private:
  void build_stages(const Values& values);
  void share_out();
  void place_weights();
  // The same for clusters.
  const char* why_no_cluster() const;
  void share_out_chain();
  void share_out_convolutions();
  void place_chain(std::vector<std::vector<ChainStep>>& steps_of,
                   std::vector<std::vector<Work>>& works_of);

  Chain planned_chain;  // its addresses, as the constructor finds them
};

}  // namespace vqvae2_fast::cuda::sampler
