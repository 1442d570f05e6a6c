// Tensors of Winograd's points [P, rows, channels] beside maps, on the stable ABI.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../cpu/winograd.h"

namespace vqvae2_fast {
namespace {

// Points lie this many floats further apart than they need: at multiples of a large power of two
// they would share the sets of the caches.
constexpr int64_t kPointGap = 48;
// Tiles, outputs or channels that a thread takes at a time.
constexpr int64_t kTileGrain = 8, kOutputGrain = 4, kChannelGrain = 64;

inline void cut_into_tiles(cpu::winograd::Map& map) {
  map.tile_rows = (map.height + cpu::winograd::kTile - 1) / cpu::winograd::kTile;
  map.tile_columns = (map.width + cpu::winograd::kTile - 1) / cpu::winograd::kTile;
}

inline cpu::winograd::Map map_of(const torch::stable::Tensor& rows) {
  cpu::winograd::Map map = {rows.size(0),
                            rows.size(1),
                            rows.size(2),
                            rows.size(3),
                            rows.stride(0),
                            rows.stride(1),
                            rows.stride(2),
                            0,
                            0};
  cut_into_tiles(map);
  return map;
}

inline int64_t tiles_of(const cpu::winograd::Map& map) {
  return map.batch * map.tile_rows * map.tile_columns;
}

// [P, rows, channels]
struct PointTensor {
  torch::stable::Tensor tensor;
  cpu::winograd::Points layout;
  float* data() { return static_cast<float*>(tensor.mutable_data_ptr()); }
};

inline PointTensor new_points(const torch::stable::Tensor& like, int64_t kernel, int64_t rows,
                              int64_t channels) {
  const int64_t count = (kernel + 3) * (kernel + 3), size = rows * channels;
  torch::stable::Tensor memory = torch::stable::new_empty(like, {count, size + kPointGap});
  const torch::stable::Tensor points =
      torch::stable::view(torch::stable::narrow(memory, 1, 0, size), {count, rows, channels});
  return {points, {size + kPointGap, channels}};
}

}  // namespace
}  // namespace vqvae2_fast
