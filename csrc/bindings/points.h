// Tensors of Winograd's points, how they relate to maps, and their products, on the stable ABI.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>

#include "../cpu/aligned.h"
#include "../cpu/kernels.h"
#include "maps.h"
#include "new_tensor.h"
#include "parallel.h"

namespace vqvae2_fast {
namespace {

// Points lie this many floats further apart than necessary, because at multiples of a large power
// of two they would share the sets of the caches.
constexpr int64_t kPointGap = 48;
// Tiles, or channels, that a thread takes at a time.
constexpr int64_t kTileGrain = 8, kChannelGrain = 64;
// Tiles that are transformed, multiplied and transformed back together, so that their points stay
// in the caches. With fewer tiles the weight's points are read too often; from 36 on the time is
// the same within 3 %.
constexpr int64_t kBlockTiles = 48;
// Rows of a map that are worth a thread of their own.
constexpr int64_t kLeastBand = 16;
// Rows of a product that a thread takes at a time: whole tiles at every SIMD level. Sums over tiles
// also take this many at a time, so that both sides stay in the second-level cache.
constexpr int64_t kProductRows = 48, kProductDepth = 128;

inline void cut_into_tiles(cpu::winograd::Map& map) {
  map.tile_rows = (map.height + cpu::winograd::kTile - 1) / cpu::winograd::kTile;
  map.tile_columns = (map.width + cpu::winograd::kTile - 1) / cpu::winograd::kTile;
}

inline cpu::winograd::Map map_of(const torch::stable::Tensor& rows) {
  cpu::winograd::Map map = {.batch = rows.size(0),
                            .height = rows.size(1),
                            .width = rows.size(2),
                            .channels = rows.size(3),
                            .stride_batch = rows.stride(0),
                            .stride_row = rows.stride(1),
                            .stride_column = rows.stride(2)};
  cut_into_tiles(map);
  return map;
}

// Whether both sides of a weight [O, C, h, w] have channels, in multiples of `unit`.
inline bool has_channels(const torch::stable::Tensor& weight, int64_t unit) {
  return weight.size(0) > 0 && weight.size(1) > 0 && weight.size(0) % unit == 0 &&
         weight.size(1) % unit == 0;
}

// Points of a tile.
inline int64_t points_of(int64_t kernel) { return (kernel + 3) * (kernel + 3); }

inline int64_t tiles_of(const cpu::winograd::Map& map) {
  return map.batch * map.tile_rows * map.tile_columns;
}

// [P, rows, columns], in rows or in panels.
struct PointTensor {
  torch::stable::Tensor memory;  // [P, floats]
  cpu::winograd::Points layout;
  int64_t count, rows, columns;
  float* data() { return mutable_floats(memory); }
  const float* data() const { return floats(memory); }
};

inline PointTensor new_points(const torch::stable::Tensor& like, int64_t count, int64_t rows,
                              int64_t columns) {
  const int64_t size = rows * columns + kPointGap;
  return {.memory = new_tensor(like, {count, size}),
          .layout = {.stride_point = size, .stride_row = columns, .panel = columns},
          .count = count,
          .rows = rows,
          .columns = columns};
}

// The same in panels, as the right side of a product.
inline PointTensor new_panels(const torch::stable::Tensor& like, int64_t count, int64_t rows,
                              int64_t columns) {
  const int64_t panel = cpu::kernels().products.panel;
  const int64_t size = (columns + panel - 1) / panel * panel * rows + kPointGap;
  return {.memory = new_tensor(like, {count, size}),
          .layout = {.stride_point = size,
                     .stride_row = panel,
                     .panel = panel,
                     .stride_panel = rows * panel},
          .count = count,
          .rows = rows,
          .columns = columns};
}

// Shares out the outputs of a weight, in the units that its transforms take.
template <class Part>
void for_outputs(int64_t outputs, const Part& part) {
  constexpr int64_t kUnit = cpu::winograd::kChannels;
  parallel_for(0, (outputs + kUnit - 1) / kUnit, 1, [&](int64_t first, int64_t last) {
    part(first * kUnit, std::min(last * kUnit, outputs));
  });
}

// Panels [P, inputs, outputs] of a weight, or [P, outputs, inputs].
inline PointTensor weight_panels(const cpu::winograd::Transforms& transforms,
                                 const cpu::winograd::Weight& weight, int64_t count,
                                 bool inputs_first, const torch::stable::Tensor& like) {
  PointTensor u = new_panels(like, count, inputs_first ? weight.inputs : weight.outputs,
                             inputs_first ? weight.outputs : weight.inputs);
  float* const target = u.data();
  for_outputs(weight.outputs, [&](int64_t first, int64_t last) {
    transforms.weight(weight, inputs_first, first, last, u.layout, target);
  });
  return u;
}

// One thread's points [P, tiles, columns] of a few tiles.
struct PointBlock {
  cpu::Aligned<float> memory;
  cpu::winograd::Points layout;

  PointBlock(int64_t count, int64_t tiles, int64_t columns)
      : memory(cpu::aligned<float>(count * (tiles * columns + kPointGap))),
        layout{
            .stride_point = tiles * columns + kPointGap, .stride_row = columns, .panel = columns} {}
};

// Blocks of nearly equal size, the same number for each thread.
inline int64_t tiles_of_block(int64_t tiles, int64_t threads) {
  const int64_t blocks = (tiles + kBlockTiles * threads - 1) / (kBlockTiles * threads) * threads;
  return (tiles + blocks - 1) / blocks;
}

// A block of tiles times some columns of a weight's panels, point by point.
inline void multiply_block(int64_t tiles, const float* a, const cpu::winograd::Points& a_layout,
                           const PointTensor& weight, int64_t first, int64_t last, PointBlock& c) {
  const float* panels = weight.data() + weight.layout.at(0, first);
  for (int64_t point = 0; point < weight.count; ++point) {
    cpu::kernels().products.along({.rows = tiles,
                                   .columns = last - first,
                                   .depth = weight.rows,
                                   .a = a + point * a_layout.stride_point,
                                   .a_stride = a_layout.stride_row,
                                   .panels = panels + point * weight.layout.stride_point,
                                   .panel_stride = weight.layout.stride_panel,
                                   .c = c.memory.get() + point * c.layout.stride_point,
                                   .c_stride = c.layout.stride_row});
  }
}

// Computes the map of the weight's outputs, in blocks of tiles. source(first, last, block) returns
// the points of those tiles and their layout; it may write them to the block.
template <class Source>
void output_tiles(const cpu::winograd::Transforms& transforms, const PointTensor& weight,
                  const Source& source, const torch::stable::Tensor* bias,
                  const cpu::winograd::Map& map, float* y) {
  const int64_t tiles = tiles_of(map), inputs = weight.rows, outputs = weight.columns;
  const int64_t size = tiles_of_block(tiles, torch::stable::get_num_threads());
  parallel_for(0, (tiles + size - 1) / size, 1, [&](int64_t begin, int64_t end) {
    PointBlock in(weight.count, size, inputs), out(weight.count, size, outputs);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i * size, last = std::min(first + size, tiles);
      const auto [points, layout] = source(first, last, in);
      multiply_block(last - first, points, layout, weight, 0, outputs, out);
      transforms.output(map, out.memory.get(), out.layout.within(first, 0),
                        bias ? floats(*bias) : nullptr, first, last, y);
    }
  });
}

// Computes a part of one image of the map of the weight's inputs, from points [P, T, outputs]. Its
// first channel is column `column` of the weight.
inline void input_tiles(const cpu::winograd::Transforms& transforms, const PointTensor& points,
                        const PointTensor& weight, int64_t column, const float* bias,
                        const cpu::winograd::Map& map, int64_t top, int64_t left, int64_t image,
                        const cpu::winograd::MapPart& part, float* x) {
  const int64_t first = part.first_channel, channels = part.last_channel - first;
  for (int64_t row = part.first_row; row < part.last_row; ++row) {
    for (int64_t i = 0; i < map.width; ++i) {
      float* position =
          x + image * map.stride_batch + row * map.stride_row + i * map.stride_column + first;
      for (int64_t c = 0; c < channels; ++c) position[c] = bias ? bias[first + c] : 0;
    }
  }
  // Products begin with a whole panel.
  const int64_t before = column % weight.layout.panel, columns = before + channels;
  // Rows of tiles that reach the part; a tile begins `top` rows above its place.
  int64_t patch = 1;
  while (patch * patch < weight.count) ++patch;
  constexpr int64_t kTile = cpu::winograd::kTile;
  const int64_t above = std::max<int64_t>(0, (part.first_row + top - patch + kTile) / kTile);
  const int64_t below = std::min(map.tile_rows, (part.last_row - 1 + top) / kTile + 1);
  const int64_t in_image = map.tile_rows * map.tile_columns;
  const int64_t begin = image * in_image + above * map.tile_columns;
  const int64_t end = image * in_image + below * map.tile_columns;
  const int64_t size = tiles_of_block(end - begin, 1);
  PointBlock block(weight.count, size, columns);
  for (int64_t tile = begin; tile < end; tile += size) {
    const int64_t stop = std::min(tile + size, end);
    multiply_block(stop - tile, points.data() + points.layout.at(tile, 0), points.layout, weight,
                   column - before, column - before + columns, block);
    transforms.input_adjoint(map, block.memory.get(), block.layout.within(tile, first - before),
                             top, left, tile, stop, part, x);
  }
}

// Calls call(image, phase, part) for the parts of a map and its phases, shared by the threads. If
// there are too few parts, rows are cut, and tiles at the cuts are multiplied twice.
template <class Call>
void for_parts(int64_t batch, int64_t phases, int64_t height, int64_t channels, const Call& call) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t channel_parts = (channels + kChannelGrain - 1) / kChannelGrain;
  const int64_t uncut = batch * phases * channel_parts;
  const int64_t bands = std::clamp<int64_t>((threads + uncut - 1) / uncut, 1,
                                            std::max<int64_t>(1, height / kLeastBand));
  const int64_t rows = (height + bands - 1) / bands;
  parallel_for(0, uncut * bands, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      // Images come last, so that the same columns of a weight serve all of them.
      const int64_t image = i % batch, row = i / batch % bands * rows;
      const int64_t first = i / batch / bands % channel_parts * kChannelGrain;
      if (row >= height) continue;
      call(image, i / batch / bands / channel_parts,
           cpu::winograd::MapPart{.first_row = row,
                                  .last_row = std::min(row + rows, height),
                                  .first_channel = first,
                                  .last_channel = std::min(first + kChannelGrain, channels)});
    }
  });
}

// The transpose of [P, T, rows] times panels [P, T, columns] -> [P, rows, columns].
inline PointTensor multiply_across(const PointTensor& a, const PointTensor& b) {
  PointTensor c = new_points(a.memory, a.count, a.columns, b.columns);
  float* const target = c.data();
  const int64_t blocks = (a.columns + kProductRows - 1) / kProductRows;
  parallel_for(0, a.count * blocks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t point = i / blocks, row = i % blocks * kProductRows;
      float* const sums = target + point * c.layout.stride_point + row * b.columns;
      for (int64_t tile = 0; tile < a.rows; tile += kProductDepth) {
        cpu::kernels().products.across(
            {.rows = std::min(kProductRows, a.columns - row),
             .columns = b.columns,
             .depth = std::min(kProductDepth, a.rows - tile),
             .a = a.data() + point * a.layout.stride_point + tile * a.columns + row,
             .a_stride = a.columns,
             .panels = b.data() + point * b.layout.stride_point + tile * b.layout.stride_row,
             .panel_stride = b.layout.stride_panel,
             .initial = tile ? sums : nullptr,
             .initial_stride = b.columns,
             .c = sums,
             .c_stride = b.columns});
      }
    }
  });
  return c;
}

}  // namespace
}  // namespace vqvae2_fast
