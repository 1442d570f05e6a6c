// `stride2_conv2d` and its gradient on the CPU, float32, on the stable ABI: a 4x4 convolution of
// stride 2 is one of 2x2 over the four phases of its large map, and goes through Winograd's tiles
// of the small one. Schemas: vqvae2_fast/ops/stride2_conv2d/op.py.
//
// Sizes: a large map [B, C, 2H, 2W], a small one [B, O, H, W], weight [O, C, 4, 4].
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <optional>
#include <tuple>

#include "../cpu/kernels.h"
#include "maps.h"
#include "new_tensor.h"
#include "parallel.h"

namespace vqvae2_fast {
namespace {

using torch::stable::Tensor;
namespace winograd = cpu::winograd;

using winograd::PointMatrices;

constexpr int64_t kTaps = 2, kPhases = 4, kPoints = 25;

const winograd::Transforms& transforms() { return cpu::kernels().winograd2; }

// The positions of a large map [B, 2H, 2W, C] that meet taps of one parity, as a map [B, H, W, C].
struct Phase {
  winograd::Map map;
  int64_t offset;     // of its first value
  int64_t top, left;  // of a tile's first position, in positions before it
};

// Output i sees inputs 2i - 1 to 2i + 2: even taps see the odd inputs from 2i - 1 on, odd taps the
// even inputs.
Phase phase_of(const Tensor& large, int64_t phase) {
  const int64_t top = phase < 2, left = phase % 2 == 0;
  winograd::Map map = map_of(large);
  const int64_t offset = top * map.stride_row + left * map.stride_column;
  map.height /= 2, map.width /= 2, map.stride_row *= 2, map.stride_column *= 2;
  winograd::cut_into_tiles(map);
  return {map, offset, top, left};
}

// weight [O, C, 4, 4] <-> [O, phase, C, 2, 2].
template <class Move>
void for_each_tap(int64_t outputs, int64_t channels, const Move& move) {
  for (int64_t o = 0; o < outputs; ++o) {
    for (int64_t phase = 0; phase < kPhases; ++phase) {
      for (int64_t c = 0; c < channels; ++c) {
        for (int64_t tap = 0; tap < kTaps * kTaps; ++tap) {
          const int64_t row = 2 * (tap / 2) + phase / 2, column = 2 * (tap % 2) + phase % 2;
          move(((o * kPhases + phase) * channels + c) * 4 + tap,
               (o * channels + c) * 16 + row * 4 + column);
        }
      }
    }
  }
}

struct Layer {
  int64_t batch, height, width;  // of the small map
  int64_t outputs, channels;     // of the small map and of the large one
  Tensor taps;                   // [O, 4 C, 2, 2]
  winograd::Weight weight;
};

// x is the small map if the convolution is transposed, else the large one.
Layer layer_of(const Tensor& x, const Tensor& weight, bool transposed) {
  STD_TORCH_CHECK(is_float(x) && is_float(weight) && x.dim() == 4 && weight.dim() == 4 &&
                      weight.size(2) == 4 && weight.size(3) == 4 &&
                      x.size(1) == weight.size(transposed ? 0 : 1) &&
                      (transposed || (x.size(2) % 2 == 0 && x.size(3) % 2 == 0)) &&
                      has_channels(weight, winograd::kChannels),
                  "expected float32 x [B, C, 2H, 2W], or [B, O, H, W] if transposed, and a "
                  "weight [O, C, 4, 4] whose channels are 16 or a multiple of it.");
  const int64_t scale = transposed ? 1 : 2, outputs = weight.size(0), channels = weight.size(1);
  Layer layer = {.batch = x.size(0),
                 .height = x.size(2) / scale,
                 .width = x.size(3) / scale,
                 .outputs = outputs,
                 .channels = channels,
                 .taps = new_tensor(weight, {outputs, kPhases * channels, kTaps, kTaps}),
                 .weight = {}};
  const Tensor source = contiguous_form(weight);
  const float* const from = floats(source);
  float* const to = mutable_floats(layer.taps);
  for_each_tap(outputs, channels, [&](int64_t tap, int64_t place) { to[tap] = from[place]; });
  layer.weight = {.v = to, .outputs = outputs, .inputs = kPhases * channels, .live = kTaps};
  return layer;
}

// Panels [P, 4 C, O] for the small map, or [P, O, 4 C] for the large one.
PointMatrices panels_of(const Layer& layer, bool to_small) {
  return winograd::weight_panels(transforms(), layer.weight, kPoints, to_small, torch_threads());
}

// Points [P, T, 4 C] of tiles first..last.
void transform_large(const Tensor& large, int64_t first, int64_t last,
                     const winograd::Points& layout, float* points) {
  for (int64_t i = 0; i < kPhases; ++i) {
    const Phase phase = phase_of(large, i);
    transforms().input(phase.map, floats(large) + phase.offset, phase.top, phase.left, first, last,
                       layout.within(0, -i * large.size(3)), points);
  }
}

// [P, T, 4 C]
PointMatrices large_points(const Tensor& large, bool in_panels = false) {
  const int64_t tiles = winograd::tiles_of(phase_of(large, 0).map);
  PointMatrices v = (in_panels ? PointMatrices::in_panels : PointMatrices::in_rows)(
      kPoints, tiles, kPhases * large.size(3));
  torch_threads().share(tiles, winograd::kTileGrain, [&](int64_t first, int64_t last) {
    transform_large(large, first, last, v.layout, v.data());
  });
  return v;
}

// [P, T, O]
PointMatrices small_points(const Tensor& small, bool in_panels = false) {
  const winograd::Map map = map_of(small);
  const int64_t tiles = winograd::tiles_of(map);
  PointMatrices m =
      (in_panels ? PointMatrices::in_panels : PointMatrices::in_rows)(kPoints, tiles, map.channels);
  torch_threads().share(tiles, winograd::kTileGrain, [&](int64_t first, int64_t last) {
    transforms().output_adjoint(map, floats(small), first, last, m.layout, m.data());
  });
  return m;
}

// Computes the small map from points of the large one.
Tensor to_small(const Layer& layer, const winograd::TileSource& source,
                const std::optional<Tensor>& bias) {
  Tensor y = new_map(layer.batch, layer.outputs, layer.height, layer.width);
  winograd::output_tiles(transforms(), panels_of(layer, true), source,
                         bias ? floats(*bias) : nullptr, map_of(to_last(y)), torch_threads(),
                         mutable_floats(y));
  return y;
}

// Computes the large map from the small one's points.
Tensor to_large(const Layer& layer, const PointMatrices& small, const std::optional<Tensor>& bias) {
  const PointMatrices weight = panels_of(layer, false);
  const int64_t channels = layer.channels;
  Tensor y = new_map(layer.batch, channels, 2 * layer.height, 2 * layer.width);
  const Tensor rows = to_last(y);
  float* const target = mutable_floats(y);
  winograd::for_parts(layer.batch, kPhases, layer.height, channels, torch_threads(),
                      [&](int64_t image, int64_t index, const winograd::MapPart& part) {
                        const Phase phase = phase_of(rows, index);
                        winograd::input_tiles(transforms(), small, weight,
                                              index * channels + part.first_channel,
                                              bias ? floats(*bias) : nullptr, phase.map, phase.top,
                                              phase.left, image, part, target + phase.offset);
                      });
  return y;
}

// One side is in rows and the other in panels, whose columns are those of the gradient.
Tensor weight_gradient(const Layer& layer, const PointMatrices& rows, const PointMatrices& panels,
                       bool small_in_panels) {
  const winograd::Threads threads = torch_threads();
  // [P, O, 4 C] or [P, 4 C, O]
  const PointMatrices du = winograd::multiply_across(rows, panels, threads);
  const Tensor dtaps =
      new_tensor(layer.taps, {layer.outputs, kPhases * layer.channels, kTaps, kTaps});
  float* const data = mutable_floats(dtaps);
  winograd::weight_gradient(transforms(), layer.weight, small_in_panels, du, threads, data,
                            nullptr);
  Tensor dweight = new_tensor(layer.taps, {layer.outputs, layer.channels, 4, 4});
  float* const to = mutable_floats(dweight);
  for_each_tap(layer.outputs, layer.channels,
               [&](int64_t tap, int64_t place) { to[place] = data[tap]; });
  return dweight;
}

Tensor stride2_conv2d_cpu(const Tensor& x, const Tensor& weight, const std::optional<Tensor>& bias,
                          bool transposed) {
  const Layer layer = layer_of(x, weight, transposed);
  std::optional<Tensor> added;
  if (bias) {
    added = checked_bias(*bias, transposed ? layer.channels : layer.outputs);
  }
  if (x.numel() == 0) {
    return transposed ? new_map(layer.batch, layer.channels, 2 * layer.height, 2 * layer.width)
                      : new_map(layer.batch, layer.outputs, layer.height, layer.width);
  }
  const Tensor rows = as_rows(x);
  if (transposed) return to_large(layer, small_points(rows), added);
  const auto transform = [&](int64_t first, int64_t last, const PointMatrices& block) {
    transform_large(rows, first, last, block.layout.within(first, 0), block.data());
    return winograd::TilePoints{block.data(), block.layout};
  };
  return to_small(layer, transform, added);
}

std::tuple<Tensor, Tensor, Tensor> stride2_conv2d_backward_cpu(const Tensor& dy, const Tensor& x,
                                                               const Tensor& weight,
                                                               bool transposed) {
  const Layer layer = layer_of(x, weight, transposed);
  const int64_t scale = transposed ? 2 : 1;
  STD_TORCH_CHECK(is_float(dy) && dy.dim() == 4 && dy.size(0) == layer.batch &&
                      dy.size(1) == (transposed ? layer.channels : layer.outputs) &&
                      dy.size(2) == scale * layer.height && dy.size(3) == scale * layer.width,
                  "expected dy of the result's size.");
  const Tensor above = as_rows(dy), rows = as_rows(x);
  if (x.numel() == 0) {
    Tensor dweight = new_tensor(x, {layer.outputs, layer.channels, 4, 4});
    torch::stable::zero_(dweight);
    return {new_map(x.size(0), x.size(1), x.size(2), x.size(3)), dweight, sum_over_rows(above)};
  }
  // The points for the gradient of x are in rows; those that they meet for the gradient of the
  // weight are in panels.
  const PointMatrices points = transposed ? large_points(above) : small_points(above);
  Tensor dweight;
  {
    const PointMatrices panels = transposed ? small_points(rows, true) : large_points(rows, true);
    dweight = weight_gradient(layer, points, panels, transposed);
  }
  const auto stored = [&](int64_t first, int64_t, const PointMatrices&) {
    return winograd::TilePoints{points.data() + points.layout.at(first, 0), points.layout};
  };
  Tensor dx = transposed ? to_small(layer, stored, {}) : to_large(layer, points, {});
  return {dx, dweight, sum_over_rows(above)};
}

}  // namespace
}  // namespace vqvae2_fast

STABLE_TORCH_LIBRARY_IMPL(vqvae2_fast, CPU, m) {
  m.impl("stride2_conv2d", TORCH_BOX(&vqvae2_fast::stride2_conv2d_cpu));
  m.impl("stride2_conv2d_backward", TORCH_BOX(&vqvae2_fast::stride2_conv2d_backward_cpu));
}
