// A weight-normalised pointwise layer for training, with dropout(ELU(x)) before it, and its
// gradients, in float32. Every block of positions is activated, multiplied and stored while it is
// in the caches, and activated again for the gradient.
//
// Sizes: rows are positions, contiguous; inputs and outputs are channels.
#pragma once

#include <stdint.h>

#include "gated_layer.h"

namespace vqvae2_fast::cpu {

struct PointwiseLayer {
  Activation activation = {};
  const float* v = nullptr;  // [outputs, inputs]
  const float* g = nullptr;  // [outputs], or null for the weight v itself
  int64_t outputs = 0, inputs = 0;
};

struct PointwiseKernels {
  int64_t block_rows;
  // Floats of a packed weight (for forward or backward), of the calls' memory, and of a part's
  // weight gradient.
  int64_t (*packed_floats)(int64_t outputs, int64_t inputs);
  int64_t (*workspace)(int64_t outputs, int64_t inputs);
  int64_t (*part_floats)(int64_t outputs, int64_t inputs);
  // The normalised weight for `forward`, or for `backward`.
  void (*pack)(const PointwiseLayer& layer, bool backward, float* packed);
  // y [rows, outputs] of rows first..last of x [rows, inputs]; bias may be null.
  void (*forward)(const PointwiseLayer& layer, const float* packed, const float* bias,
                  const float* x, int64_t first, int64_t last, float* memory, float* y);
  // dx of rows first..last; their gradient of the normalised weight is written to `part`.
  void (*backward)(const PointwiseLayer& layer, const float* packed, const float* dy,
                   const float* x, int64_t first, int64_t last, float* memory, float* part,
                   float* dx);
  // The sum of the parts, added in order, as gradients of v and (if there is one) g.
  void (*weight_gradient)(const PointwiseLayer& layer, const float* parts, int64_t num_parts,
                          int64_t first_output, int64_t last_output, float* dv, float* dg);
};

}  // namespace vqvae2_fast::cpu
