// The chain of a position's stages on one cluster, as data: what pixel_cluster_kernel follows.
//
// Every block of the cluster keeps the chain's activations in its own shared memory, at the same
// places: `Network`'s addresses of them count from the start of shared memory. A block computes its
// units of a stage and stores each output into the shared memory of all blocks; a block goes on
// when all bytes of the stage have come. What the convolutions give is fetched for each block of
// layers by itself, and each block's inputs are published by themselves. Drawing, and what follows
// a code before the first product, is computed by every block for itself.
#pragma once

#include "program.h"

namespace vqvae2_fast::cuda::sampler {

constexpr int kMostChainSteps = 64;
// Of a chain block's shared memory: three barriers for each step, one for the caches.
constexpr int kChainBarriers = 3 * kMostChainSteps + 1;
constexpr int kChainBarrierBytes = (kChainBarriers * 8 + 127) / 128 * 128;
// Step rows of the chain, which a warp takes by twos: more than two read weights again.
constexpr int kMostChainRows = 8;

struct ChainStep {
  StepKind kind;
  int32_t stage, index;
  int32_t first, end;  // works of the block
  // That every block gets from all of them, which they await before the next step; of heads, for
  // each chunk of positions. With `exchanges` 0 the step is the block's own.
  int32_t exchanges, bytes;
  // The block of layers that begins in this step, or -1: it adds what the block's convolutions
  // gave, which launch blocks convolving_first .. + convolving_count have computed, and writes the
  // inputs of those of the next position.
  int32_t begins, convolving_first, convolving_count;
  int32_t first_copy, end_copy;  // weights that are asked for when the step begins
};

// Weights on their way into shared memory, of one of the block's works.
struct WeightCopy {
  const void* from;
  int32_t to, bytes;  // from the block's weights on
  int32_t work;
  int32_t ahead;  // for the next position; at a launch's start, for its first
};

struct ChainBlock {
  int32_t first_work, end_work, first_copy, end_copy;
};

}  // namespace vqvae2_fast::cuda::sampler
