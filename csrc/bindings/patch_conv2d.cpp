// `patch_conv2d` and its gradient on the CPU, float32, on the stable ABI.
// Schemas: vqvae2_fast/ops/patch_conv2d/op.py. Sizes: csrc/cpu/layers/patch_conv.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "../cpu/aligned.h"
#include "../cpu/kernels.h"
#include "../cpu/layers/patch_conv.h"
#include "maps.h"
#include "new_tensor.h"
#include "parallel.h"

namespace vqvae2_fast {
namespace {

using torch::stable::Tensor;
namespace patch_conv = cpu::patch_conv;

// Products, and values of a weight, that pay for waking a thread.
constexpr int64_t kProductGrain = 1 << 18, kWeightGrain = 1 << 14;
// The weight's gradient is summed in parts, as many for any number of threads: each has 2 blocks or
// more, there are 32 at most, and they have 1 MiB in all, but 8 may have more.
constexpr int64_t kLeastBlocks = 2, kMostParts = 32, kLeastParts = 8, kMostPartFloats = 1 << 18;
// Rows of a large map that a thread takes if there are not enough images for all.
constexpr int64_t kLeastBand = 16;

const patch_conv::Kernels& kernels() { return cpu::kernels().patch_conv; }

struct Layer {
  patch_conv::Shape shape;
  int64_t batch;
  Tensor weight;

  int64_t products() const { return shape.patch() * shape.outputs; }  // of a position
  int64_t large_size() const {                                        // of an image
    return shape.large_height() * shape.large_width() * shape.channels;
  }
  int64_t small_size() const { return shape.height * shape.width * shape.outputs; }
};

// x is the small map if the convolution is transposed, else the large one.
Layer layer_of(const Tensor& x, const Tensor& weight, int64_t stride, int64_t top, int64_t left,
               int64_t live, bool transposed) {
  STD_TORCH_CHECK(is_float(x) && is_float(weight) && x.dim() == 4 && weight.dim() == 4 &&
                      weight.size(2) == weight.size(3) &&
                      x.size(1) == weight.size(transposed ? 0 : 1) && x.numel() > 0 &&
                      weight.numel() > 0 && stride > 0,
                  "expected float32 x [B, C, stride H, stride W], or [B, O, H, W] if "
                  "transposed, a square weight [O, C, k, k] and stride >= 1.");
  const int64_t kernel = weight.size(2), scale = transposed ? 1 : stride;
  STD_TORCH_CHECK(x.size(2) % scale == 0 && x.size(3) % scale == 0,
                  "expected a map whose sides are multiples of stride=", stride, ", got ",
                  x.size(2), "x", x.size(3), ".");
  STD_TORCH_CHECK(0 <= top && top <= kernel && 0 <= left && left <= kernel && 0 <= live &&
                      live <= kernel && kernel * (kernel - 1) + live > 0,
                  "expected top, left and live in 0..", kernel, " and a tap that counts, got ", top,
                  ", ", left, " and ", live, ".");
  return {.shape = {.height = x.size(2) / scale,
                    .width = x.size(3) / scale,
                    .outputs = weight.size(0),
                    .channels = weight.size(1),
                    .kernel = kernel,
                    .stride = stride,
                    .top = top,
                    .left = left,
                    .live = live},
          .batch = x.size(0),
          .weight = contiguous_form(weight)};
}

cpu::Aligned<float> packed_weight(const Layer& layer, bool to_large) {
  auto packed = cpu::aligned<float>(kernels().packed_floats(layer.shape, to_large));
  const int64_t panels = kernels().num_panels(layer.shape, to_large);
  const int64_t grain = 1 + kWeightGrain * panels / (layer.products() + 1);
  parallel_for(0, panels, grain, [&](int64_t first, int64_t last) {
    kernels().pack(layer.shape, to_large, floats(layer.weight), first, last, packed.get());
  });
  return packed;
}

cpu::Aligned<float> workspace_of(const Layer& layer) {
  return cpu::aligned<float>(kernels().workspace(layer.shape));
}

// Blocks of small rows, of all images.
struct Blocks {
  const Layer& layer;
  const int64_t rows, of_image, count;

  explicit Blocks(const Layer& layer_)
      : layer(layer_),
        rows(kernels().block_rows(layer.shape)),
        of_image((layer.shape.height + rows - 1) / rows),
        count(layer.batch * of_image) {}
  int64_t grain() const {
    return 1 + kProductGrain / (rows * layer.shape.width * layer.products() + 1);
  }
  int64_t first(int64_t i) const { return i % of_image * rows; }
  int64_t last(int64_t i) const { return std::min(first(i) + rows, layer.shape.height); }
  int64_t large_offset(int64_t i) const { return i / of_image * layer.large_size(); }
  int64_t small_offset(int64_t i) const { return i / of_image * layer.small_size(); }
};

// The maps are rows [B, H, W, channels], contiguous.
Tensor to_small(const Layer& layer, const Tensor& large, const float* bias) {
  const patch_conv::Shape& shape = layer.shape;
  Tensor small = new_map(layer.batch, shape.outputs, shape.height, shape.width);
  const auto packed = packed_weight(layer, false);
  float* const target = mutable_floats(small);
  const Blocks blocks(layer);
  parallel_for(0, blocks.count, blocks.grain(), [&](int64_t begin, int64_t end) {
    const auto memory = workspace_of(layer);
    for (int64_t i = begin; i < end; ++i) {
      kernels().to_small(shape, packed.get(), bias, floats(large) + blocks.large_offset(i),
                         blocks.first(i), blocks.last(i), memory.get(),
                         target + blocks.small_offset(i));
    }
  });
  return small;
}

Tensor to_large(const Layer& layer, const Tensor& small, const float* bias) {
  const patch_conv::Shape& shape = layer.shape;
  Tensor large = new_map(layer.batch, shape.channels, shape.large_height(), shape.large_width());
  const auto packed = packed_weight(layer, true);
  float* const target = mutable_floats(large);
  const int64_t threads = torch::stable::get_num_threads(), height = shape.large_height();
  const int64_t bands = std::clamp<int64_t>((threads + layer.batch - 1) / layer.batch, 1,
                                            std::max<int64_t>(1, height / kLeastBand));
  const int64_t rows = (height + bands - 1) / bands;
  const int64_t products = shape.height * shape.width * layer.products() / bands;
  parallel_for(
      0, layer.batch * bands, 1 + kProductGrain / (products + 1), [&](int64_t begin, int64_t end) {
        const auto memory = workspace_of(layer);
        for (int64_t i = begin; i < end; ++i) {
          const int64_t image = i / bands, first = i % bands * rows;
          if (first >= height) continue;
          kernels().to_large(shape, packed.get(), bias, floats(small) + image * layer.small_size(),
                             first, std::min(first + rows, height), memory.get(),
                             target + image * layer.large_size());
        }
      });
  return large;
}

Tensor weight_gradient(const Layer& layer, const Tensor& large, const Tensor& small) {
  const patch_conv::Shape& shape = layer.shape;
  const Blocks blocks(layer);
  const int64_t part_floats = kernels().part_floats(shape);
  const int64_t most = std::clamp<int64_t>(kMostPartFloats / part_floats, kLeastParts, kMostParts);
  const int64_t parts = std::clamp<int64_t>(blocks.count / kLeastBlocks, 1, most);
  const auto sums = cpu::aligned<float>(parts * part_floats);
  const int64_t grain = 1 + blocks.grain() * parts / blocks.count;
  parallel_for(0, parts, grain, [&](int64_t begin, int64_t end) {
    const auto memory = workspace_of(layer);
    for (int64_t part = begin; part < end; ++part) {
      float* const target = sums.get() + part * part_floats;
      std::fill_n(target, part_floats, 0.0f);
      for (int64_t i = blocks.count * part / parts; i < blocks.count * (part + 1) / parts; ++i) {
        kernels().weight_part(shape, floats(large) + blocks.large_offset(i),
                              floats(small) + blocks.small_offset(i), blocks.first(i),
                              blocks.last(i), memory.get(), target);
      }
    }
  });
  Tensor dweight =
      new_tensor(layer.weight, {shape.outputs, shape.channels, shape.kernel, shape.kernel});
  float* const target = mutable_floats(dweight);
  const int64_t output_grain = 1 + kWeightGrain / (parts * shape.patch());
  parallel_for(0, shape.outputs, output_grain, [&](int64_t first, int64_t last) {
    kernels().sum_parts(shape, sums.get(), parts, first, last, target);
  });
  return dweight;
}

Tensor patch_conv2d_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                        int64_t stride, int64_t top, int64_t left, int64_t live, bool transposed) {
  const Layer layer = layer_of(x, weight, stride, top, left, live, transposed);
  const Tensor rows = contiguous_form(to_last(x));
  std::optional<Tensor> added;
  if (bias) {
    const int64_t outputs = transposed ? layer.shape.channels : layer.shape.outputs;
    added = checked_bias(*bias, outputs);
  }
  const float* const values = added ? floats(*added) : nullptr;
  return transposed ? to_large(layer, rows, values) : to_small(layer, rows, values);
}

std::tuple<Tensor, Tensor, Tensor> patch_conv2d_backward_cpu(const Tensor& dy, const Tensor& x,
                                                             const Tensor& weight, int64_t stride,
                                                             int64_t top, int64_t left,
                                                             int64_t live, bool transposed,
                                                             bool with_dx) {
  const Layer layer = layer_of(x, weight, stride, top, left, live, transposed);
  const patch_conv::Shape& shape = layer.shape;
  STD_TORCH_CHECK(is_float(dy) && dy.dim() == 4 && dy.size(0) == layer.batch &&
                      dy.size(1) == (transposed ? shape.channels : shape.outputs) &&
                      dy.size(2) == (transposed ? shape.large_height() : shape.height) &&
                      dy.size(3) == (transposed ? shape.large_width() : shape.width),
                  "expected dy of the result's size, got ", dy.dim(), " dimensions and ",
                  dy.numel(), " values.");
  const Tensor above = contiguous_form(to_last(dy));
  const Tensor rows = contiguous_form(to_last(x));
  Tensor dx = new_tensor(x, {0});
  if (with_dx) dx = transposed ? to_small(layer, above, nullptr) : to_large(layer, above, nullptr);
  Tensor dweight =
      transposed ? weight_gradient(layer, above, rows) : weight_gradient(layer, rows, above);
  return {dx, dweight, sum_over_rows(above)};
}

}  // namespace
}  // namespace vqvae2_fast

STABLE_TORCH_LIBRARY_IMPL(vqvae2_fast, CPU, m) {
  m.impl("patch_conv2d", TORCH_BOX(&vqvae2_fast::patch_conv2d_cpu));
  m.impl("patch_conv2d_backward", TORCH_BOX(&vqvae2_fast::patch_conv2d_backward_cpu));
}
