// `normed_conv2d` with a 1x1 kernel and its gradient on the CPU, float32, on the stable ABI:
// positions are rows, and threads share blocks of them.
#include "pointwise.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include "../cpu/aligned.h"
#include "../cpu/kernels.h"
#include "maps.h"
#include "new_tensor.h"
#include "parallel.h"

namespace vqvae2_fast {
namespace {

using torch::stable::Tensor;

// Products that pay for waking a thread, and outputs whose norms a thread takes at a time.
constexpr int64_t kProductGrain = 1 << 18, kOutputGrain = 32;
// Parts of the rows whose weight gradients are summed separately, whatever the number of threads.
constexpr int64_t kMostParts = 8;

struct Problem {
  Tensor v;
  std::optional<Tensor> g;
  cpu::PointwiseLayer layer;
  int64_t rows = 0;
};

Problem problem_of(const Tensor& x, const Tensor& weight_v, const std::optional<Tensor>& weight_g,
                   const cpu::Activation& activation) {
  STD_TORCH_CHECK(is_float(x) && is_float(weight_v) && x.dim() == 4 &&
                      weight_v.size(1) == x.size(1) && weight_v.numel() > 0 &&
                      fits_weight(weight_g, weight_v),
                  "expected float32 x [B, C_in, H, W], a weight [C_out, C_in, 1, 1] "
                  "and g [C_out, 1, 1, 1].");
  Problem problem = {.v = contiguous_form(weight_v), .g = {}, .layer = {}};
  if (weight_g) problem.g = contiguous_form(*weight_g);
  problem.layer = {.activation = activation,
                   .v = floats(problem.v),
                   .g = problem.g ? floats(*problem.g) : nullptr,
                   .outputs = weight_v.size(0),
                   .inputs = weight_v.size(1)};
  problem.rows = x.size(0) * x.size(2) * x.size(3);
  return problem;
}

cpu::Aligned<float> packed_weight(const cpu::PointwiseLayer& layer, bool backward) {
  const cpu::PointwiseKernels& kernels = cpu::kernels().pointwise;
  auto packed = cpu::aligned<float>(kernels.packed_floats(layer.outputs, layer.inputs));
  kernels.pack(layer, backward, packed.get());
  return packed;
}

cpu::Aligned<float> workspace_of(const cpu::PointwiseLayer& layer) {
  return cpu::aligned<float>(cpu::kernels().pointwise.workspace(layer.outputs, layer.inputs));
}

}  // namespace

bool is_pointwise(const Tensor& weight_v) {
  return weight_v.dim() == 4 && weight_v.size(2) == 1 && weight_v.size(3) == 1;
}

Tensor pointwise_forward(const Tensor& x, const Tensor& weight_v,
                         const std::optional<Tensor>& weight_g, const std::optional<Tensor>& bias,
                         const cpu::Activation& activation) {
  const Problem problem = problem_of(x, weight_v, weight_g, activation);
  const cpu::PointwiseLayer& layer = problem.layer;
  Tensor y = new_map(x.size(0), layer.outputs, x.size(2), x.size(3));
  if (y.numel() == 0) return y;
  const Tensor rows = contiguous_form(to_last(x));
  std::optional<Tensor> added;
  if (bias) added = checked_bias(*bias, layer.outputs);
  const auto packed = packed_weight(layer, false);
  const cpu::PointwiseKernels& kernels = cpu::kernels().pointwise;
  const int64_t block = kernels.block_rows, blocks = (problem.rows + block - 1) / block;
  const int64_t grain = 1 + kProductGrain / (block * layer.outputs * layer.inputs + 1);
  float* const target = mutable_floats(y);
  parallel_for(0, blocks, grain, [&](int64_t first, int64_t last) {
    const auto memory = workspace_of(layer);
    kernels.forward(layer, packed.get(), added ? floats(*added) : nullptr, floats(rows),
                    first * block, std::min(last * block, problem.rows), memory.get(), target);
  });
  return y;
}

Gradients pointwise_backward(const Tensor& dy, const Tensor& x, const Tensor& weight_v,
                             const std::optional<Tensor>& weight_g,
                             const cpu::Activation& activation) {
  const Problem problem = problem_of(x, weight_v, weight_g, activation);
  const cpu::PointwiseLayer& layer = problem.layer;
  STD_TORCH_CHECK(is_float(dy) && dy.dim() == 4 && dy.size(0) == x.size(0) &&
                      dy.size(1) == layer.outputs && dy.size(2) == x.size(2) &&
                      dy.size(3) == x.size(3),
                  "expected dy [B, C_out, H, W].");
  Tensor dx = new_map(x.size(0), layer.inputs, x.size(2), x.size(3));
  Tensor dv = new_tensor(x, {layer.outputs, layer.inputs, 1, 1});
  Tensor dg = new_tensor(x, {problem.g ? layer.outputs : 0});
  const Tensor above = contiguous_form(to_last(dy));
  const Tensor rows = contiguous_form(to_last(x));
  const cpu::PointwiseKernels& kernels = cpu::kernels().pointwise;
  const int64_t block = kernels.block_rows, blocks = (problem.rows + block - 1) / block;
  const int64_t parts = std::max<int64_t>(1, std::min(kMostParts, blocks));
  const int64_t part_floats = kernels.part_floats(layer.outputs, layer.inputs);
  const auto sums = cpu::aligned<float>(parts * part_floats);
  {
    const auto packed = packed_weight(layer, true);
    float* const target = mutable_floats(dx);
    parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
      const auto memory = workspace_of(layer);
      for (int64_t part = first; part < last; ++part) {
        kernels.backward(layer, packed.get(), floats(above), floats(rows),
                         blocks * part / parts * block,
                         std::min(blocks * (part + 1) / parts * block, problem.rows), memory.get(),
                         sums.get() + part * part_floats, target);
      }
    });
  }
  float *const dv_data = mutable_floats(dv), *const dg_data = mutable_floats(dg);
  parallel_for(0, layer.outputs, kOutputGrain, [&](int64_t first, int64_t last) {
    kernels.weight_gradient(layer, sums.get(), parts, first, last, dv_data, dg_data);
  });
  return {dx, dv, dg, sum_over_rows(above)};
}

}  // namespace vqvae2_fast
