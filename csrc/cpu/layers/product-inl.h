// The kernels of product.h: include inside a level file after its simd header.
#pragma once

#include "product.h"

namespace vqvae2_fast::cpu::products {
namespace {

constexpr int kLanes = Vec::kLanes, kTileVecs = 2, kTileRows = Vec::kTileRows;
// Columns of a panel, which a tile covers.
constexpr int64_t kPanel = kTileVecs * kLanes;

inline int64_t panels_of(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

// ROWS rows from `row` on and at most VECS vectors of columns from `column` on, where a panel
// begins.
template <bool ACROSS, int ROWS, int VECS>
inline void tile(const Product& product, int64_t row, int64_t column) {
  Vec sums[ROWS][VECS];
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r) {
    for (int v = 0; v < VECS; ++v) sums[r][v] = Vec::broadcast(0.0f);
  }
  const int64_t row_stride = ACROSS ? 1 : product.a_stride, step = ACROSS ? product.a_stride : 1;
  // A pointer for every third row, as in the sampler's product.
  constexpr int kThirds = (ROWS + 2) / 3;
  const float* thirds[kThirds];
#pragma GCC unroll 4
  for (int i = 0; i < kThirds; ++i) {
    thirds[i] = product.a + (row + 3 * i) * row_stride;
    asm("" : "+r"(thirds[i]));
  }
  const float* panel = product.panels + column / kPanel * product.panel_stride;
  const int64_t to_next = product.segment_stride - product.depth * step;
  for (int64_t segment = 0; segment < product.segments; ++segment) {
    for (int64_t d = 0; d < product.depth; ++d, panel += kPanel) {
      Vec right[VECS];
      for (int v = 0; v < VECS; ++v) right[v] = Vec::load(panel + v * kLanes);
#pragma GCC unroll 12
      for (int r = 0; r < ROWS; ++r) {
        const Vec left = Vec::broadcast(thirds[r / 3][r % 3 * row_stride]);
        for (int v = 0; v < VECS; ++v) sums[r][v] = sums[r][v].add_product(left, right[v]);
      }
#pragma GCC unroll 4
      for (int i = 0; i < kThirds; ++i) thirds[i] += step;
    }
#pragma GCC unroll 4
    for (int i = 0; i < kThirds; ++i) thirds[i] += to_next;
  }
  const int64_t columns = product.columns - column;
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r) {
    float* const c = product.c + (row + r) * product.c_stride + column;
    for (int v = 0; v < VECS; ++v) {
      const int64_t at = v * kLanes, count = columns - at < kLanes ? columns - at : kLanes;
      Vec result = sums[r][v];
      if (product.initial) {
        const float* from = product.initial + (row + r) * product.initial_stride + column;
        result = Vec::load_first(from + at, count) + result;
      }
      result.store_first(c + at, count);
    }
  }
}

template <bool ACROSS, int ROWS>
inline void tile_of(const Product& product, int64_t rows, int64_t row, int64_t column) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) {
      tile_of<ACROSS, ROWS - 1>(product, rows, row, column);
      return;
    }
  }
  if (product.columns - column > kLanes) {
    tile<ACROSS, ROWS, kTileVecs>(product, row, column);
  } else {
    tile<ACROSS, ROWS, 1>(product, row, column);
  }
}

template <bool ACROSS>
inline void multiply(const Product& product) {
  const int64_t tiles = (product.rows + kTileRows - 1) / kTileRows;
  if (tiles == 0) return;
  const int64_t tile_rows = (product.rows + tiles - 1) / tiles;  // tiles of nearly equal size
  for (int64_t column = 0; column < product.columns; column += kPanel) {
    for (int64_t row = 0; row < product.rows; row += tile_rows) {
      const int64_t left = product.rows - row;
      tile_of<ACROSS, kTileRows>(product, left < tile_rows ? left : tile_rows, row, column);
    }
  }
}

// matrix [depth, columns] -> panels [columns / kPanel, depth, kPanel], zeros past the columns.
inline void pack_panels(const float* matrix, int64_t depth, int64_t columns, float* panels) {
  for (int64_t j = 0; j < columns; j += kPanel) {
    const int64_t count = columns - j < kPanel ? columns - j : kPanel;
    for (int64_t d = 0; d < depth; ++d, panels += kPanel) {
      const float* source = matrix + d * columns + j;
      if (count == kPanel) {
        for (int64_t i = 0; i < kPanel; ++i) panels[i] = source[i];
      } else {
        for (int64_t i = 0; i < kPanel; ++i) panels[i] = i < count ? source[i] : 0.0f;
      }
    }
  }
}

constexpr Products kKernels = {.panel = kPanel, .along = multiply<false>, .across = multiply<true>};

}  // namespace
}  // namespace vqvae2_fast::cpu::products
