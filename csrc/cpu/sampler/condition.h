// The conditioning stack: the features of the coarser maps, which a draw computes once.
#pragma once

#include <memory>
#include <vector>

#include "state.h"

namespace vqvae2_fast::cpu::sampler {

// A stack of maps with a zero border, [B, h + 2 border, w + 2 border, channels].
struct PaddedMaps {
  Buffer memory;
  int64_t height, width, border, channels;

  PaddedMaps(int64_t batch, int64_t height_, int64_t width_, int64_t border_, int64_t channels_)
      : height(height_), width(width_), border(border_), channels(channels_) {
    memory = Buffer(batch * sample_stride());
  }
  int64_t row_stride() const { return (width + 2 * border) * channels; }
  int64_t sample_stride() const { return (height + 2 * border) * row_stride(); }
  // Row i of a sample from its left border; i from -border.
  float* row(int64_t sample, int64_t i) const {
    return memory.data() + sample * sample_stride() + (border + i) * row_stride();
  }
};

// What the stack needs besides the features that it leaves in the state.
struct ConditionScratch {
  ConditionScratch(const Plan& plan, int64_t batch);

  std::vector<Buffer> coarser;  // features of each map except the finest
  std::unique_ptr<PaddedMaps> inputs, inner;
  Buffer first, second;
};

// Computes state.features; every thread of the team calls it.
void compute_features(State& state, const ConditionScratch& scratch);

}  // namespace vqvae2_fast::cpu::sampler
