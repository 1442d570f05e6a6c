// Packs matrices and convolutions from a prior's own tensors into the memory of a plan.
#pragma once

#include <stdint.h>

#include <vector>

#include "kernels.h"

namespace vqvae2_fast::cpu::sampler {

// n matrices of one shape, each with panels of the same outputs. A convolution is a matrix whose
// inputs are those of its taps, one tap after another.
struct Packing {
  // Taps that lie in panels of their own: panel p of matrix n begins at
  // to + n * matrix_stride + p * panel_stride.
  struct Block {
    float* to;
    int64_t first_tap, num_taps;
    int64_t matrix_stride, panel_stride;
  };
  static constexpr int64_t kZeros = -1;  // padding, in `outputs` and `inputs`

  Format format = Format::kFloat32;
  // The weight of matrix n for column c, tap t and input i is
  // weights[n][outputs[c] * output_stride + taps[t] + inputs[i]] * factors[n][outputs[c]].
  std::vector<const float*> weights;
  std::vector<const float*> factors;  // or empty, for 1
  int64_t output_stride = 0;
  std::vector<int64_t> outputs;  // of all panels
  std::vector<int64_t> inputs, taps;
  // With kQuads, [n, inputs], by which each weight is multiplied before it is rounded, and
  // [n, outputs], what one step of each output is.
  const float* input_scales = nullptr;
  float* scales = nullptr;
  std::vector<Block> blocks;
};

// Reads each weight once. The memory written to must hold zeros. Throws std::bad_alloc, and as
// Team::run.
void pack(const Packing& packing, int threads);

}  // namespace vqvae2_fast::cpu::sampler
