// Causal attention, with dropout or without, and its gradient, one head of one image at a time, in
// float32: tiles of queries against all keys they see, so that no L x L matrix is kept.
//
// Sizes: L positions, d channels of queries and keys, dv of values. Strides are in elements.
#pragma once

#include <stdint.h>

namespace vqvae2_fast::cpu {

// [L, channels] of one head.
struct HeadRows {
  const float* data;
  int64_t stride_position, stride_channel;
};

struct AttentionHead {
  HeadRows q, k, v;
  int64_t length, dim, value_dim;
  float scale;  // of the logits; 1 / (1 - dropout_p) is applied separately
  float dropout_p;
  bool on_logits;  // else on the probabilities
  // Entry (group, query, key) is dropped as `dropout_mask` says.
  uint64_t seed;
  uint32_t group;

  bool drops_logits() const { return on_logits && dropout_p > 0; }
  bool drops_weights() const { return !on_logits && dropout_p > 0; }
};

struct AttentionKernels {
  // Floats of memory, 64-byte aligned, that the calls below need.
  int64_t (*workspace)(int64_t length, int64_t dim, int64_t value_dim, bool backward);
  // out [L, dv], contiguous channels.
  void (*forward)(const AttentionHead& head, float* out, int64_t stride_position, float* memory);
  // dq, dk [L, d] and dv [L, dv], contiguous channels.
  void (*backward)(const AttentionHead& head, const HeadRows& dout, float* dq, float* dk, float* dv,
                   int64_t stride_position, int64_t value_stride_position, float* memory);
};

}  // namespace vqvae2_fast::cpu
