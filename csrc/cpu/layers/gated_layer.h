// What a gated residual layer does around its convolutions, in training: dropout(ELU(x)) before
// one, the gate after the second, and their gradients. Rows are the channels of a position.
#pragma once

#include <stdint.h>

namespace vqvae2_fast::cpu {

// ELU, dropout or both, of maps of `positions` rows per image.
struct Activation {
  bool elu = false;
  float dropout_p = 0;  // 0 for none
  uint64_t seed = 0;    // entry (image, position, channel) is dropped as `dropout_mask` says
  uint32_t first_image = 0;
  int64_t positions = 0;

  bool is_identity() const { return !elu && dropout_p == 0; }
};

struct GatedLayer {
  // y = activation(x) of rows first..last of [B * positions, channels]: x and y are contiguous and
  // begin with row `first`.
  void (*activate)(const Activation& activation, const float* x, int64_t channels, int64_t first,
                   int64_t last, float* y);
  // dx = dy * activation'(x); dx may be dy.
  void (*activate_backward)(const Activation& activation, const float* x, const float* dy,
                            int64_t channels, int64_t first, int64_t last, float* dx);
  // out = a * sigmoid(b) + x, (a, b) the halves of h + condition (null for none).
  void (*gate)(const float* h, const float* condition, const float* x, int64_t channels,
               float* out);
  // The gradient of h and of the condition from that of out.
  void (*gate_backward)(const float* dout, const float* h, const float* condition, int64_t channels,
                        float* dh);
};

}  // namespace vqvae2_fast::cpu
