// Published figures of the cards that the report's model knows, and the model's own assumptions.
// Nothing here was measured by this project.
#pragma once

#include <stdint.h>
#include <string.h>

namespace vqvae2_fast::cuda::sampler {

struct CardModel {
  const char* name;
  int32_t multiprocessors, shared_bytes;     // shared memory that a block may have
  int32_t clusters16, clusters8;             // of so many blocks with all of it, at once
  double clock;                              // Hz under load, an estimate
  double l2_bytes, l2_bandwidth;             // bytes, bytes/s over all multiprocessors (estimates)
  double memory_bandwidth;                   // bytes/s
  double float32, tensor_float32, bfloat16;  // multiply-adds/s, dense, by the data sheets
};

// Data sheets of A100 SXM 80 GB, H100 SXM, B200; L2 bandwidths are estimates. A cluster lies inside
// one of a card's groups of multiprocessors (GPC). An H100's eight have 16 or 18, some perhaps
// fewer: 132 in all, so 7 clusters of 16 are assumed, and two of 8 in each group; a B200's have 18
// or 20. On a card, the driver is asked.
constexpr CardModel kCardModels[] = {
    {.name = "a100",
     .multiprocessors = 108,
     .shared_bytes = 163 << 10,
     .clusters16 = 0,
     .clusters8 = 0,
     .clock = 1.41e9,
     .l2_bytes = 40e6,
     .l2_bandwidth = 4.0e12,
     .memory_bandwidth = 2.04e12,
     .float32 = 9.7e12,
     .tensor_float32 = 78e12,
     .bfloat16 = 156e12},
    {.name = "h100",
     .multiprocessors = 132,
     .shared_bytes = 227 << 10,
     .clusters16 = 7,
     .clusters8 = 16,
     .clock = 1.75e9,
     .l2_bytes = 50e6,
     .l2_bandwidth = 5.5e12,
     .memory_bandwidth = 3.35e12,
     .float32 = 33e12,
     .tensor_float32 = 247e12,
     .bfloat16 = 494e12},
    {.name = "b200",
     .multiprocessors = 148,
     .shared_bytes = 227 << 10,
     .clusters16 = 8,
     .clusters8 = 16,
     .clock = 1.8e9,
     .l2_bytes = 126e6,
     .l2_bandwidth = 8.0e12,
     .memory_bandwidth = 8.0e12,
     .float32 = 37e12,
     .tensor_float32 = 550e12,
     .bfloat16 = 1125e12},
};

inline const CardModel* card_model(const char* name) {
  for (const CardModel& card : kCardModels) {
    if (strcmp(card.name, name) == 0) return &card;
  }
  return nullptr;
}

// A block announces that it is done: a barrier, a fence that waits until all its stores have
// reached the L2 cache, and then the store of its word. These are two trips, one after the other.
constexpr double kTelling = 0.6e-6;
// A round trip to the L2 cache on a loaded card. A block that waits sees all flags in one trip if
// it has a thread for each, and its inputs in one trip if they fit side by side.
constexpr double kL2Trip = 0.5e-6;
// Sums over lanes, what follows them, and the barriers of a step.
constexpr double kSumLatency = 0.3e-6;
// Drawing a code by one block: guidance, temperature, noise, argmax.
constexpr double kDrawing = 2.0e-6;
// Top-k and top-p besides (filter.cuh), in cycles. A maximum or a sum over the block is ten
// shuffles or reads of shared memory one after another, of about 25 cycles each, and two barriers.
constexpr double kReductionCycles = 300;
// A digit: the key, an atomic add to its bin and what it returns, a barrier, then one warp's eight
// bins for each lane, a scan of five shuffles of two words, the eight bins once more, and a
// barrier.
constexpr double kDigitCycles = 550;
// Digits until one code is left at the boundary: the eighths below the largest logit leave some ten
// of 512 spread logits; the logit's first eight bits hold little else, the next eight tell them
// apart. Seven at most, if logits are equal.
constexpr double kDigitsLookedAt = 3;
// Instructions of a thread: the key of a code, for each digit; its exponential and quotient.
constexpr double kKeyInstructions = 20, kProbabilityInstructions = 60;
// From a store into another block's shared memory until a thread that waits for it goes on. A load
// from there takes some 180 cycles on an idle H100 (0.10 us), like a trip to its L2 cache of 260,
// for which this model takes 0.5 us; then the barrier's count and the waking of those who wait.
constexpr double kClusterHandOver = 0.3e-6;
// A kernel launch that follows another on a stream.
constexpr double kLaunch = 2.5e-6;
// A cooperative launch takes longer: the card waits until it is empty.
constexpr double kCooperativeLaunch = 5e-6;
// Bytes that a multiprocessor reads of its shared memory in a cycle, and of the L2 cache.
constexpr double kSharedBytesPerCycle = 128, kL2BytesPerCycle = 64;
// Multiply-adds, or other instructions of a thread, of a multiprocessor in a cycle.
constexpr double kFmaPerCycle = 128;
// The share of the L2 cache that keeps what is read at every position.
constexpr double kL2Share = 0.8;

}  // namespace vqvae2_fast::cuda::sampler
