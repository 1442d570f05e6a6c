// `normed_conv2d` and its gradient on the CPU with factors rounded to bfloat16, on the stable ABI:
// threads share images, or bands of their rows.
#include "tile_conv.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstring>

#include "../cpu/aligned.h"
#include "../cpu/kernels.h"
#include "maps.h"
#include "new_tensor.h"
#include "parallel.h"

namespace vqvae2_fast {
namespace {

using torch::stable::Tensor;
namespace tile_conv = cpu::tile_conv;

// Outputs whose weight a thread packs at a time, and rows of a band.
constexpr int64_t kOutputGrain = 16, kLeastBand = 4;

cpu::Aligned<char> zeros(int64_t bytes) {
  auto memory = cpu::aligned<char>(bytes);
  memset(memory.get(), 0, static_cast<size_t>(bytes));
  return memory;
}

struct Problem {
  tile_conv::Shape shape;
  Tensor v;  // zero on the dead taps
  std::optional<Tensor> g;
  cpu::PointwiseLayer layer;  // the weight as a matrix [C_out, C_in kernel^2]
  int64_t images = 0;
};

// v with zeros on the taps that do not count.
Tensor live_weight(const Tensor& weight_v, int64_t live) {
  const Tensor v = contiguous_form(weight_v);
  const int64_t kernel = v.size(2), area = kernel * kernel, count = kernel * (kernel - 1) + live;
  if (count == area) return v;
  Tensor masked = new_tensor(v, {v.size(0), v.size(1), kernel, kernel});
  const float* const from = floats(v);
  float* const to = mutable_floats(masked);
  for (int64_t i = 0; i < v.numel(); i += area) {
    for (int64_t tap = 0; tap < area; ++tap) to[i + tap] = tap < count ? from[i + tap] : 0;
  }
  return masked;
}

Problem problem_of(const Tensor& x, const PlacedWeight& weight) {
  const int64_t kernel = weight.v.dim() == 4 ? weight.v.size(2) : 0;
  STD_TORCH_CHECK(cpu::kernels().tile_conv.convolve,
                  "expected a processor with AMX for rounded factors, got level ",
                  cpu::kernels().name, ".");
  STD_TORCH_CHECK(is_float(x) && is_float(weight.v) && x.dim() == 4 &&
                      (kernel == 1 || kernel == 3 || kernel == 5) && weight.v.size(3) == kernel &&
                      weight.v.size(1) == x.size(1) && weight.v.numel() > 0 &&
                      fits_weight(weight.g, weight.v),
                  "expected float32 x [B, C_in, H, W], a weight of 1x1, 3x3 or 5x5 "
                  "and g [C_out, 1, 1, 1].");
  Problem problem = {.shape = {.height = x.size(2),
                               .width = x.size(3),
                               .kernel = kernel,
                               .top = weight.top,
                               .left = weight.left,
                               .live = weight.live,
                               .inputs = weight.v.size(1),
                               .outputs = weight.v.size(0)},
                     .v = live_weight(weight.v, weight.live),
                     .g = {},
                     .layer = {},
                     .images = x.size(0)};
  if (weight.g) problem.g = contiguous_form(*weight.g);
  problem.layer = {.v = floats(problem.v),
                   .g = problem.g ? floats(*problem.g) : nullptr,
                   .outputs = problem.shape.outputs,
                   .inputs = problem.shape.inputs * kernel * kernel};
  return problem;
}

// The normalised weight in tiles.
cpu::Aligned<char> packed_weight(const Problem& problem, bool adjoint) {
  const tile_conv::Kernels& kernels = cpu::kernels().tile_conv;
  const int64_t bytes = kernels.packed_bytes(problem.shape, adjoint);
  auto packed = zeros(bytes);
  parallel_for(0, problem.shape.outputs, kOutputGrain, [&](int64_t first, int64_t last) {
    kernels.pack(problem.shape, adjoint, problem.layer, first, last, packed.get());
  });
  return packed;
}

// Computes the maps of all images, in bands of rows if there are fewer images than threads.
// after(image, first row, last row) follows each.
template <class After>
void convolve(const Problem& problem, bool adjoint, const cpu::Activation& activation,
              const float* bias, const Tensor& from, float* to, const After& after) {
  const tile_conv::Shape& shape = problem.shape;
  const tile_conv::Kernels& kernels = cpu::kernels().tile_conv;
  const auto packed = packed_weight(problem, adjoint);
  const int64_t threads = torch::stable::get_num_threads(), images = problem.images;
  const int64_t bands = std::clamp<int64_t>((threads + images - 1) / images, 1,
                                            std::max<int64_t>(1, shape.height / kLeastBand));
  const int64_t rows = (shape.height + bands - 1) / bands, area = shape.height * shape.width;
  parallel_for(0, images * bands, 1, [&](int64_t begin, int64_t end) {
    const auto memory = zeros(kernels.workspace(shape, adjoint, rows));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t image = i / bands, first = i % bands * rows;
      const int64_t last = std::min(first + rows, shape.height);
      if (first >= last) continue;
      kernels.convolve(shape, adjoint, activation, image, packed.get(), bias,
                       floats(from) + image * area * shape.from(adjoint), first, last, memory.get(),
                       to + image * area * shape.to(adjoint));
      after(image, first, last);
    }
  });
}

}  // namespace

Tensor tile_conv_forward(const Tensor& x, const PlacedWeight& weight,
                         const std::optional<Tensor>& bias, const cpu::Activation& activation) {
  const Problem problem = problem_of(x, weight);
  Tensor y = new_map(x.size(0), problem.shape.outputs, x.size(2), x.size(3));
  if (y.numel() == 0) return y;
  std::optional<Tensor> added;
  if (bias) added = checked_bias(*bias, problem.shape.outputs);
  convolve(problem, false, activation, added ? floats(*added) : nullptr,
           contiguous_form(to_last(x)), mutable_floats(y), [](int64_t, int64_t, int64_t) {});
  return y;
}

Gradients tile_conv_backward(const Tensor& dy, const Tensor& x, const PlacedWeight& weight,
                             const cpu::Activation& activation) {
  const Problem problem = problem_of(x, weight);
  const tile_conv::Shape& shape = problem.shape;
  const tile_conv::Kernels& kernels = cpu::kernels().tile_conv;
  STD_TORCH_CHECK(is_float(dy) && dy.dim() == 4 && dy.size(0) == x.size(0) &&
                      dy.size(1) == shape.outputs && dy.size(2) == x.size(2) &&
                      dy.size(3) == x.size(3),
                  "expected dy [B, C_out, H, W].");
  Tensor dx = new_map(x.size(0), shape.inputs, shape.height, shape.width);
  Tensor dv = new_tensor(x, {shape.outputs, shape.inputs, shape.kernel, shape.kernel});
  Tensor dg = new_tensor(x, {problem.g ? shape.outputs : 0});
  const Tensor above = contiguous_form(to_last(dy));
  const Tensor rows = contiguous_form(to_last(x));
  if (dy.numel() == 0) {
    torch::stable::zero_(dv);
    torch::stable::zero_(dg);
    return {dx, dv, dg, sum_over_rows(above)};
  }
  const int64_t inputs = shape.inputs, area = shape.height * shape.width;
  float* const dx_data = mutable_floats(dx);
  convolve(problem, true, {}, nullptr, above, dx_data,
           [&](int64_t image, int64_t first, int64_t last) {
             if (activation.is_identity()) return;
             const int64_t begin = image * area + first * shape.width;
             const int64_t end = image * area + last * shape.width;
             float* const part = dx_data + begin * inputs;
             cpu::kernels().gated_layer.activate_backward(activation, floats(rows) + begin * inputs,
                                                          part, inputs, begin, end, part);
           });

  const int64_t places_bytes = kernels.places_bytes(shape),
                pairs_bytes = kernels.pairs_bytes(shape);
  const auto places = cpu::aligned<char>(problem.images * places_bytes);
  const auto pairs = cpu::aligned<char>(problem.images * pairs_bytes);
  parallel_for(0, problem.images, 1, [&](int64_t begin, int64_t end) {
    const auto of_x = zeros(kernels.workspace(shape, false, shape.height));
    const auto of_dy = zeros(kernels.workspace(shape, true, shape.height));
    for (int64_t image = begin; image < end; ++image) {
      kernels.to_places(shape, activation, image, floats(rows) + image * area * inputs, of_x.get(),
                        places.get() + image * places_bytes);
      kernels.to_pairs(shape, floats(above) + image * area * shape.outputs, of_dy.get(),
                       pairs.get() + image * pairs_bytes);
    }
  });
  const int64_t size = cpu::kernels().pointwise.part_floats(shape.outputs, problem.layer.inputs);
  const auto dw = zeros(size * static_cast<int64_t>(sizeof(float)));
  float* const dw_data = reinterpret_cast<float*>(dw.get());
  parallel_for(0, kernels.parts(shape), 1, [&](int64_t first, int64_t last) {
    kernels.weight_gradient(shape, problem.images, places.get(), pairs.get(), first, last, dw_data,
                            size / shape.outputs);
  });
  float *const dv_data = mutable_floats(dv), *const dg_data = mutable_floats(dg);
  parallel_for(0, shape.outputs, kOutputGrain, [&](int64_t first, int64_t last) {
    cpu::kernels().pointwise.weight_gradient(problem.layer, dw_data, 1, first, last, dv_data,
                                             dg_data);
  });
  return {dx, dv, dg, sum_over_rows(above)};
}

}  // namespace vqvae2_fast
