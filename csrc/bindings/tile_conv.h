// `normed_conv2d` with factors rounded to bfloat16, on the CPU's tiles: see tile_conv.cpp.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "../cpu/layers/gated_layer.h"
#include "pointwise.h"

namespace vqvae2_fast {

// A weight as v and g (empty without), and where its kernel lies.
struct PlacedWeight {
  const torch::stable::Tensor& v;
  const std::optional<torch::stable::Tensor>& g;
  int64_t top, left, live;
};

torch::stable::Tensor tile_conv_forward(const torch::stable::Tensor& x, const PlacedWeight& weight,
                                        const std::optional<torch::stable::Tensor>& bias,
                                        const cpu::Activation& activation);

Gradients tile_conv_backward(const torch::stable::Tensor& dy, const torch::stable::Tensor& x,
                             const PlacedWeight& weight, const cpu::Activation& activation);

}  // namespace vqvae2_fast
