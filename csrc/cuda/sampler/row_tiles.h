// The tiles that the row phase is cut into, one for each block, and which of them it takes. Plain
// C++.
#pragma once

#include <initializer_list>

#include "row_product.h"

namespace vqvae2_fast::cuda::sampler {

constexpr int kRowWarps = 4;  // of a block
constexpr int kWarpRows = 32;

// Rows by columns. A warp computes kWarpRows x warp_columns sums. Where that takes fewer than
// kRowWarps, `groups` of warps share the inputs of a tile. Sums are added in one order in all.
struct RowTile {
  int32_t rows, columns, warp_columns;

  constexpr int warps() const { return rows * columns / (kWarpRows * warp_columns); }
  constexpr int groups() const { return kRowWarps / warps(); }
};

constexpr RowTile kRowTiles[] = {{64, 128, 64}, {32, 64, 32}, {32, 32, 32}};

// The largest tile, which reads least, of which a launch has one for each multiprocessor; the
// smallest if it has so many of none.
inline RowTile best_row_tile(std::initializer_list<const RowProduct*> products,
                             int multiprocessors) {
  RowTile best = {};
  for (const RowTile& tile : kRowTiles) {
    const auto tiles = [](int size, int of) { return static_cast<int64_t>(size + of - 1) / of; };
    int64_t all = 0;
    for (const RowProduct* p : products) {
      all += p->layers * tiles(p->rows, tile.rows) * tiles(p->outputs, tile.columns);
    }
    best = tile;
    if (all >= multiprocessors) break;
  }
  return best;
}

}  // namespace vqvae2_fast::cuda::sampler
