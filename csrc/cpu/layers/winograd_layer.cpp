#include "winograd_layer.h"

namespace vqvae2_fast::cpu::winograd {
namespace {

// Points lie this many floats further apart than necessary, because at multiples of a large power
// of two they would share the sets of the caches.
constexpr int64_t kPointGap = 48;
// Channels that a thread takes at a time.
constexpr int64_t kChannelGrain = 64;
// Tiles that are transformed, multiplied and transformed back together, so that their points stay
// in the caches. With fewer tiles the weight's points are read too often; from 36 on the time is
// the same within 3 %.
constexpr int64_t kBlockTiles = 48;
// Rows of a map that are worth a thread of their own.
constexpr int64_t kLeastBand = 16;
// Rows of a product that a thread takes at a time: whole tiles at every SIMD level. Sums over tiles
// also take this many at a time, so that both sides stay in the second-level cache.
constexpr int64_t kProductRows = 48, kProductDepth = 128;

// Blocks of nearly equal size, the same number for each thread.
int64_t tiles_of_block(int64_t tiles, int64_t threads) {
  const int64_t blocks = (tiles + kBlockTiles * threads - 1) / (kBlockTiles * threads) * threads;
  return (tiles + blocks - 1) / blocks;
}

// A block of tiles times some columns of a weight's panels, point by point.
void multiply_block(int64_t tiles, const TilePoints& a, const PointMatrices& weight, int64_t first,
                    int64_t last, const PointMatrices& c) {
  const float* panels = weight.data() + weight.layout.at(0, first);
  for (int64_t point = 0; point < weight.count; ++point) {
    kernels().products.along({.rows = tiles,
                              .columns = last - first,
                              .depth = weight.rows,
                              .a = a.points + point * a.layout.stride_point,
                              .a_stride = a.layout.stride_row,
                              .panels = panels + point * weight.layout.stride_point,
                              .panel_stride = weight.layout.stride_panel,
                              .c = c.data() + point * c.layout.stride_point,
                              .c_stride = c.layout.stride_row});
  }
}

}  // namespace

PointMatrices PointMatrices::in_rows(int64_t count, int64_t rows, int64_t columns) {
  const int64_t size = rows * columns + kPointGap;
  return {.memory = aligned<float>(count * size),
          .layout = {.stride_point = size, .stride_row = columns, .panel = columns},
          .count = count,
          .rows = rows,
          .columns = columns};
}

PointMatrices PointMatrices::in_panels(int64_t count, int64_t rows, int64_t columns) {
  const int64_t panel = kernels().products.panel;
  const int64_t size = (columns + panel - 1) / panel * panel * rows + kPointGap;
  return {.memory = aligned<float>(count * size),
          .layout = {.stride_point = size,
                     .stride_row = panel,
                     .panel = panel,
                     .stride_panel = rows * panel},
          .count = count,
          .rows = rows,
          .columns = columns};
}

PointMatrices weight_panels(const Transforms& transforms, const Weight& weight, int64_t count,
                            bool inputs_first, const Threads& threads) {
  PointMatrices u = PointMatrices::in_panels(count, inputs_first ? weight.inputs : weight.outputs,
                                             inputs_first ? weight.outputs : weight.inputs);
  threads.share(weight.outputs, kChannels, [&](int64_t first, int64_t last) {
    transforms.weight(weight, inputs_first, first, last, u.layout, u.data());
  });
  return u;
}

void weight_gradient(const Transforms& transforms, const Weight& weight, bool inputs_first,
                     const PointMatrices& du, const Threads& threads, float* dv, float* dg) {
  threads.share(weight.outputs, kChannels, [&](int64_t first, int64_t last) {
    transforms.weight_adjoint(weight, inputs_first, du.data(), du.layout, first, last, dv, dg);
  });
}

void output_tiles(const Transforms& transforms, const PointMatrices& weight,
                  const TileSource& source, const float* bias, const Map& map,
                  const Threads& threads, float* y) {
  const int64_t tiles = tiles_of(map), size = tiles_of_block(tiles, threads.count);
  threads.run_parts((tiles + size - 1) / size, [&](int64_t begin, int64_t end) {
    const auto in = PointMatrices::in_rows(weight.count, size, weight.rows);
    const auto out = PointMatrices::in_rows(weight.count, size, weight.columns);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t first = i * size, last = std::min(first + size, tiles);
      multiply_block(last - first, source(first, last, in), weight, 0, weight.columns, out);
      transforms.output(map, out.data(), out.layout.within(first, 0), bias, first, last, y);
    }
  });
}

void input_tiles(const Transforms& transforms, const PointMatrices& points,
                 const PointMatrices& weight, int64_t column, const float* bias, const Map& map,
                 int64_t top, int64_t left, int64_t image, const MapPart& part, float* x) {
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
  const int64_t above = std::max<int64_t>(0, (part.first_row + top - patch + kTile) / kTile);
  const int64_t below = std::min(map.tile_rows, (part.last_row - 1 + top) / kTile + 1);
  const int64_t in_image = map.tile_rows * map.tile_columns;
  const int64_t begin = image * in_image + above * map.tile_columns;
  const int64_t end = image * in_image + below * map.tile_columns;
  const int64_t size = tiles_of_block(end - begin, 1);
  const auto block = PointMatrices::in_rows(weight.count, size, columns);
  for (int64_t tile = begin; tile < end; tile += size) {
    const int64_t stop = std::min(tile + size, end);
    multiply_block(stop - tile, {points.data() + points.layout.at(tile, 0), points.layout}, weight,
                   column - before, column - before + columns, block);
    transforms.input_adjoint(map, block.data(), block.layout.within(tile, first - before), top,
                             left, tile, stop, part, x);
  }
}

void for_parts(int64_t batch, int64_t phases, int64_t height, int64_t channels,
               const Threads& threads,
               const std::function<void(int64_t, int64_t, const MapPart&)>& call) {
  const int64_t channel_parts = (channels + kChannelGrain - 1) / kChannelGrain;
  const int64_t uncut = batch * phases * channel_parts;
  const int64_t bands = std::clamp<int64_t>((threads.count + uncut - 1) / uncut, 1,
                                            std::max<int64_t>(1, height / kLeastBand));
  const int64_t rows = (height + bands - 1) / bands;
  threads.run_parts(uncut * bands, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      // Images come last, so that the same columns of a weight serve all of them.
      const int64_t image = i % batch, row = i / batch % bands * rows;
      const int64_t first = i / batch / bands % channel_parts * kChannelGrain;
      if (row >= height) continue;
      call(image, i / batch / bands / channel_parts,
           {.first_row = row,
            .last_row = std::min(row + rows, height),
            .first_channel = first,
            .last_channel = std::min(first + kChannelGrain, channels)});
    }
  });
}

PointMatrices multiply_across(const PointMatrices& a, const PointMatrices& b,
                              const Threads& threads) {
  PointMatrices c = PointMatrices::in_rows(a.count, a.columns, b.columns);
  const int64_t blocks = (a.columns + kProductRows - 1) / kProductRows;
  threads.run_parts(a.count * blocks, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t point = i / blocks, row = i % blocks * kProductRows;
      float* const sums = c.data() + point * c.layout.stride_point + row * b.columns;
      for (int64_t tile = 0; tile < a.rows; tile += kProductDepth) {
        kernels().products.across(
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

}  // namespace vqvae2_fast::cpu::winograd
