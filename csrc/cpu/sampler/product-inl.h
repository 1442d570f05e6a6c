// The matrix product of both phases: a register-blocked tile over packed panels.
//
// Inputs are taken in blocks of kInputBlock: within one a chain of fused multiply-adds from zero,
// and the blocks' sums are added in their order. So the rounding error grows with the block, not
// with all inputs, and in the row phase a block's weights stay in the first cache while all rows
// pass. In the pixel phase, with a few rows, the weights stream past once, several panels side by
// side so that enough independent sums are under way.
#pragma once

#include "kernels.h"

namespace vqvae2_fast::cpu::sampler {
namespace {

// Inputs of a block: 128 * kPanel floats are 16 KiB, half of a 32 KiB first cache; the rest is for
// rows of a.
constexpr int64_t kInputBlock = 128;
// Rows up to which the pixel phase's tiles are used.
constexpr int64_t kFewRows = 2;
// Vectors that a tile covers: two columns of accumulators, or with few rows the whole panel.
constexpr int kTileVecs = 2;
constexpr int kPanelVecs = static_cast<int>(kPanel) / Vec::kLanes;
constexpr int kFewVecs = kPanelVecs < 4 ? kPanelVecs : 4;
// Panels side by side with few rows: 8 accumulators a row with 32 registers, else 4.
constexpr int kFewPanels = Vec::kLanes == 16 ? 4 : 1;
// How far ahead of its use a line of weights is asked for, in inputs (128 bytes each).
constexpr int64_t kPrefetch = 16;

// c = initial + a times weights, for at most kInputBlock inputs.
template <int ROWS, int PANELS, int VECS>
inline void product_tile(const float* a, int64_t a_stride, const float* weights,
                         int64_t panel_stride, int64_t inputs, const float* initial,
                         int64_t initial_stride, float* c, int64_t c_stride) {
  constexpr int kColumns = PANELS * VECS;
  Vec sums[ROWS][kColumns];
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kColumns; ++v) sums[r][v] = Vec::broadcast(0.0f);
  }
  for (int64_t k = 0; k < inputs; ++k) {
    Vec w[kColumns];
#pragma GCC unroll 8
    for (int v = 0; v < kColumns; ++v) {
      const float* line = weights + v / VECS * panel_stride + v % VECS * Vec::kLanes;
      w[v] = Vec::load(line);
      if (ROWS <= kFewRows) __builtin_prefetch(line + kPrefetch * kPanel);
    }
    weights += kPanel;
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r) {
      const Vec x = Vec::broadcast(a[r * a_stride + k]);
#pragma GCC unroll 8
      for (int v = 0; v < kColumns; ++v) sums[r][v] = sums[r][v].add_product_fused(x, w[v]);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kColumns; ++v) {
      const int64_t column = v / VECS * kPanel + v % VECS * Vec::kLanes;
      (Vec::load(initial + r * initial_stride + column) + sums[r][v])
          .store(c + r * c_stride + column);
    }
  }
}

// product_tile with `rows` known at run time, 1..ROWS.
template <int ROWS, int PANELS, int VECS>
inline void product_tile_of(int64_t rows, const float* a, int64_t a_stride, const float* weights,
                            int64_t panel_stride, int64_t inputs, const float* initial,
                            int64_t initial_stride, float* c, int64_t c_stride) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) {
      product_tile_of<ROWS - 1, PANELS, VECS>(rows, a, a_stride, weights, panel_stride, inputs,
                                              initial, initial_stride, c, c_stride);
      return;
    }
  }
  product_tile<ROWS, PANELS, VECS>(a, a_stride, weights, panel_stride, inputs, initial,
                                   initial_stride, c, c_stride);
}

// All blocks of PANELS panels, from `panel`, for every row.
template <int ROWS, int PANELS, int VECS>
inline void product_panels(const Product& p, int64_t panel, int64_t tile_rows) {
  for (int64_t first = 0; first < p.inputs || first == 0; first += kInputBlock) {
    const int64_t left = p.inputs - first;
    const int64_t inputs = left < kInputBlock ? left : kInputBlock;
    // The sums of the blocks before wait in c.
    const float* initial = first == 0 ? p.initial : p.c;
    const int64_t initial_group_stride = first == 0 ? p.initial_group_stride : p.c_group_stride;
    const int64_t initial_stride = first == 0 ? p.initial_stride : p.c_stride;
    const float* weights = p.weights + panel * p.panel_stride + first * kPanel;
    for (int64_t g = 0; g < p.groups; ++g) {
      for (int64_t row = 0; row < p.rows; row += tile_rows) {
        const int64_t rows = p.rows - row < tile_rows ? p.rows - row : tile_rows;
        const float* a = p.a + g * p.a_group_stride + row * p.a_stride + first;
        for (int v = 0; v < kPanelVecs; v += VECS) {
          const int64_t column = panel * kPanel + v * Vec::kLanes;
          product_tile_of<ROWS, PANELS, VECS>(
              rows, a, p.a_stride, weights + v * Vec::kLanes, p.panel_stride, inputs,
              initial + g * initial_group_stride + row * initial_stride + column, initial_stride,
              p.c + g * p.c_group_stride + row * p.c_stride + column, p.c_stride);
        }
      }
    }
  }
}

inline void product(const Product& p) {
  if (p.rows <= kFewRows) {
    int64_t panel = 0;
    for (; panel + kFewPanels <= p.panels; panel += kFewPanels) {
      product_panels<kFewRows, kFewPanels, kFewVecs>(p, panel, p.rows);
    }
    for (; panel < p.panels; ++panel) product_panels<kFewRows, 1, kFewVecs>(p, panel, p.rows);
    return;
  }
  // Tiles of nearly one size: 32 rows are 11 + 11 + 10, not 12 + 12 + 8.
  const int64_t tiles = (p.rows + Vec::kTileRows - 1) / Vec::kTileRows;
  const int64_t tile_rows = (p.rows + tiles - 1) / tiles;
  for (int64_t panel = 0; panel < p.panels; ++panel) {
    product_panels<Vec::kTileRows, 1, kTileVecs>(p, panel, tile_rows);
  }
}

}  // namespace
}  // namespace vqvae2_fast::cpu::sampler
