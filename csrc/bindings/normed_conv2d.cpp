// `normed_conv2d` and its gradient on the CPU, on the stable ABI; 1x1 kernels are in pointwise.cpp,
// rounded factors in tile_conv.cpp.
// Schemas: vqvae2_fast/ops/normed_conv2d/op.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "../cpu/kernels.h"
#include "maps.h"
#include "new_tensor.h"
#include "parallel.h"
#include "pointwise.h"
#include "tile_conv.h"

namespace vqvae2_fast {
namespace {

using torch::stable::Tensor;
namespace winograd = cpu::winograd;

constexpr int64_t kRowGrain = 64;  // positions

struct Problem {
  winograd::Transforms transforms;
  winograd::Weight weight;
  int64_t kernel, top, left;
  Tensor v;
  std::optional<Tensor> g;
};

// A 1x1 kernel only reads the position itself.
void check_place(int64_t kernel, int64_t top, int64_t left, int64_t live) {
  const int64_t most = kernel == 1 ? 0 : kernel;
  STD_TORCH_CHECK(
      0 <= top && top <= most && 0 <= left && left <= most && 0 < live && live <= kernel,
      "expected top and left in 0..", most, " and live in 1..", kernel, " for a kernel ", kernel,
      "x", kernel, ", got ", top, ", ", left, " and ", live, ".");
}

Problem problem_of(const Tensor& x, const Tensor& weight_v, const std::optional<Tensor>& weight_g,
                   int64_t top, int64_t left, int64_t live) {
  const int64_t kernel = weight_v.dim() == 4 ? weight_v.size(2) : 0;
  STD_TORCH_CHECK(is_float(x) && is_float(weight_v) && x.dim() == 4 && weight_v.dim() == 4 &&
                      (kernel == 3 || kernel == 5) && weight_v.size(3) == kernel &&
                      weight_v.size(1) == x.size(1) && has_channels(weight_v, 1) &&
                      fits_weight(weight_g, weight_v),
                  "expected float32 x [B, C_in, H, W], a weight 3x3 or 5x5 and g "
                  "[C_out, 1, 1, 1].");
  check_place(kernel, top, left, live);
  Problem problem;
  problem.kernel = kernel, problem.top = top, problem.left = left;
  problem.v = contiguous_form(weight_v);
  if (weight_g) problem.g = contiguous_form(*weight_g);
  problem.transforms = kernel == 3 ? cpu::kernels().winograd3 : cpu::kernels().winograd5;
  problem.weight = {.v = floats(problem.v),
                    .g = problem.g ? floats(*problem.g) : nullptr,
                    .outputs = weight_v.size(0),
                    .inputs = weight_v.size(1),
                    .live = live};
  return problem;
}

// Panels [P, C_in, C_out] for the outputs, or [P, C_out, C_in] for the gradient of the inputs.
winograd::PointMatrices panels_of(const Problem& problem, bool inputs_first) {
  return winograd::weight_panels(problem.transforms, problem.weight,
                                 winograd::points_of(problem.kernel), inputs_first,
                                 torch_threads());
}

// rows [B, H, W, C] after the activation, or the rows themselves if there is none.
Tensor activated(const Tensor& rows, const cpu::Activation& activation) {
  if (activation.is_identity()) return rows;
  const Tensor x = contiguous_form(rows);
  Tensor y = new_tensor(x, {x.size(0), x.size(1), x.size(2), x.size(3)});
  const int64_t channels = x.size(3);
  float* const target = y.mutable_data_ptr<float>();
  const cpu::GatedLayer& kernels = cpu::kernels().gated_layer;
  parallel_for(0, x.numel() / channels, kRowGrain, [&](int64_t first, int64_t last) {
    kernels.activate(activation, floats(x) + first * channels, channels, first, last,
                     target + first * channels);
  });
  return y;
}

Tensor normed_conv2d_cpu(const Tensor& x, const Tensor& weight_v,
                         const std::optional<Tensor>& weight_g, const std::optional<Tensor>& bias,
                         int64_t top, int64_t left, int64_t live, bool elu, double dropout_p,
                         const std::optional<Tensor>& seed, bool rounded) {
  if (rounded) {
    check_place(weight_v.size(2), top, left, live);
    return tile_conv_forward(x, {weight_v, weight_g, top, left, live}, bias,
                             activation_of(x, elu, dropout_p, seed));
  }
  if (is_pointwise(weight_v)) {
    check_place(1, top, left, live);
    return pointwise_forward(x, weight_v, weight_g, bias, activation_of(x, elu, dropout_p, seed));
  }
  const Problem problem = problem_of(x, weight_v, weight_g, top, left, live);
  const cpu::Activation activation = activation_of(x, elu, dropout_p, seed);
  const int64_t outputs = problem.weight.outputs;
  Tensor y = new_map(x.size(0), outputs, x.size(2), x.size(3));
  if (y.numel() == 0) return y;
  const Tensor rows = activated(as_rows(x), activation);
  const winograd::Map map = map_of(rows);
  const auto transform = [&](int64_t first, int64_t last, const winograd::PointMatrices& block) {
    problem.transforms.input(map, floats(rows), problem.top, problem.left, first, last,
                             block.layout.within(first, 0), block.data());
    return winograd::TilePoints{block.data(), block.layout};
  };
  std::optional<Tensor> added;
  if (bias) added = checked_bias(*bias, outputs);
  winograd::output_tiles(problem.transforms, panels_of(problem, true), transform,
                         added ? floats(*added) : nullptr, map_of(to_last(y)), torch_threads(),
                         mutable_floats(y));
  return y;
}

Gradients normed_conv2d_backward_cpu(const Tensor& dy, const Tensor& x, const Tensor& weight_v,
                                     const std::optional<Tensor>& weight_g, int64_t top,
                                     int64_t left, int64_t live, bool elu, double dropout_p,
                                     const std::optional<Tensor>& seed, bool rounded) {
  if (rounded) {
    check_place(weight_v.size(2), top, left, live);
    return tile_conv_backward(dy, x, {weight_v, weight_g, top, left, live},
                              activation_of(x, elu, dropout_p, seed));
  }
  if (is_pointwise(weight_v)) {
    check_place(1, top, left, live);
    return pointwise_backward(dy, x, weight_v, weight_g, activation_of(x, elu, dropout_p, seed));
  }
  const Problem problem = problem_of(x, weight_v, weight_g, top, left, live);
  const cpu::Activation activation = activation_of(x, elu, dropout_p, seed);
  const winograd::Weight& weight = problem.weight;
  STD_TORCH_CHECK(is_float(dy) && dy.dim() == 4 && dy.size(0) == x.size(0) &&
                      dy.size(1) == weight.outputs && dy.size(2) == x.size(2) &&
                      dy.size(3) == x.size(3),
                  "expected dy [B, C_out, H, W].");
  Tensor dx = new_map(x.size(0), x.size(1), x.size(2), x.size(3));
  Tensor dv = new_tensor(x, {weight.outputs, weight.inputs, problem.kernel, problem.kernel});
  Tensor dg = new_tensor(x, {problem.g ? weight.outputs : 0});
  if (dy.numel() == 0) {
    torch::stable::zero_(dv);
    torch::stable::zero_(dg);
    return {dx, dv, dg, sum_over_rows(as_rows(dy))};
  }
  const Tensor gradient = as_rows(dy);
  const winograd::Map out_map = map_of(gradient);
  using winograd::PointMatrices;
  const winograd::Threads threads = torch_threads();
  const int64_t count = winograd::points_of(problem.kernel), tiles = winograd::tiles_of(out_map);
  const auto dm = PointMatrices::in_rows(count, tiles, weight.outputs);
  threads.share(tiles, winograd::kTileGrain, [&](int64_t first, int64_t last) {
    problem.transforms.output_adjoint(out_map, floats(gradient), first, last, dm.layout, dm.data());
  });
  {
    const auto v = PointMatrices::in_panels(count, tiles, weight.inputs);
    const Tensor rows = activated(as_rows(x), activation);
    const winograd::Map map = map_of(rows);
    threads.share(tiles, winograd::kTileGrain, [&](int64_t first, int64_t last) {
      problem.transforms.input(map, floats(rows), problem.top, problem.left, first, last, v.layout,
                               v.data());
    });
    const PointMatrices du = winograd::multiply_across(dm, v, threads);  // [P, C_out, C_in]
    winograd::weight_gradient(problem.transforms, weight, false, du, threads, mutable_floats(dv),
                              mutable_floats(dg));
  }
  const PointMatrices u = panels_of(problem, false);  // [P, C_out, C_in]
  const winograd::Map map = map_of(to_last(dx));
  float* const dx_data = mutable_floats(dx);
  winograd::for_parts(map.batch, 1, map.height, weight.inputs, threads,
                      [&](int64_t image, int64_t, const winograd::MapPart& part) {
                        winograd::input_tiles(problem.transforms, dm, u, part.first_channel,
                                              nullptr, map, problem.top, problem.left, image, part,
                                              dx_data);
                      });
  if (!activation.is_identity()) {
    const Tensor rows = contiguous_form(as_rows(x));
    const cpu::GatedLayer& kernels = cpu::kernels().gated_layer;
    const int64_t channels = weight.inputs, count = rows.numel() / channels;
    parallel_for(0, count, kRowGrain, [&](int64_t first, int64_t end) {
      float* const part = dx_data + first * channels;
      kernels.activate_backward(activation, floats(rows) + first * channels, part, channels, first,
                                end, part);
    });
  }
  return {dx, dv, dg, sum_over_rows(gradient)};
}

}  // namespace
}  // namespace vqvae2_fast

STABLE_TORCH_LIBRARY_IMPL(vqvae2_fast, CPU, m) {
  m.impl("normed_conv2d", TORCH_BOX(&vqvae2_fast::normed_conv2d_cpu));
  m.impl("normed_conv2d_backward", TORCH_BOX(&vqvae2_fast::normed_conv2d_backward_cpu));
}
