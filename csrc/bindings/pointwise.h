// `normed_conv2d` with a 1x1 kernel on the CPU: see pointwise.cpp.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "../cpu/layers/gated_layer.h"

namespace vqvae2_fast {

// Of x, v, g (empty without) and bias.
using Gradients = std::tuple<torch::stable::Tensor, torch::stable::Tensor, torch::stable::Tensor,
                             torch::stable::Tensor>;

bool is_pointwise(const torch::stable::Tensor& weight_v);

torch::stable::Tensor pointwise_forward(const torch::stable::Tensor& x,
                                        const torch::stable::Tensor& weight_v,
                                        const std::optional<torch::stable::Tensor>& weight_g,
                                        const std::optional<torch::stable::Tensor>& bias,
                                        const cpu::Activation& activation);

Gradients pointwise_backward(const torch::stable::Tensor& dy, const torch::stable::Tensor& x,
                             const torch::stable::Tensor& weight_v,
                             const std::optional<torch::stable::Tensor>& weight_g,
                             const cpu::Activation& activation);

}  // namespace vqvae2_fast
