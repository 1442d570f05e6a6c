// Cross-entropy of codes directly from features, and its gradients, in float32. Only the logits of
// one block of positions exist at a time, in the caches.
//
// Sizes: N positions, C channels, K codes.
#pragma once

#include <stdint.h>

namespace vqvae2_fast::cpu {

// logits = features weight^T + bias
struct CodeLoss {
  const float* features;  // [N, C]
  const float* bias;      // [K]
  const int64_t* codes;   // [N], each in 0..K-1
  int64_t num_codes, channels;
  float scale;  // of the gradients
  // The weight [K, C] as `PointwiseKernels::pack` leaves it, for forward and for backward.
  const float *packed, *packed_backward;
};

struct CodeLossKernels {
  int64_t block_rows;
  // Floats of the memory of a call.
  int64_t (*workspace)(int64_t num_codes, int64_t channels);
  // Sum of the nats of positions first..last. Writes their dfeatures, their gradient of the weight
  // to `part` as `PointwiseKernels::backward` does, and that of the bias [K].
  double (*rows)(const CodeLoss& loss, int64_t first, int64_t last, float* memory, float* part,
                 float* dbias, float* dfeatures);
};

}  // namespace vqvae2_fast::cpu
