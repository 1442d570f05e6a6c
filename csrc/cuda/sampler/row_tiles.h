// The tiles that the row phase is cut into, one for each block, and which of them is expected to
// take the least time. Plain C++. No time here is measured.
#pragma once

#include <algorithm>
#include <cmath>
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

constexpr RowTile kRowTiles[] = {{32, 32, 32}, {32, 64, 32}, {64, 128, 64}};

// Multiply-adds of a multiprocessor in a cycle: float32 from Hopper on (an A100 makes 64, by which
// model.h bounds it), and what mma.sync reaches on an A100 by its data sheet in tf32 and bfloat16.
// Later cards have more of these, but mostly for other instructions.
constexpr double kRowProductsPerCycle[] = {128, 512, 1024};
// Bytes of shared memory that a multiprocessor reads or writes in a cycle.
constexpr double kRowSharedPerCycle = 128;
// Bytes of the L2 cache that each multiprocessor gets in a cycle when all of them read: cards.h's
// bandwidths by clock and multiprocessors are 26 on an A100, 24 on an H100, 30 on a B200.
constexpr double kRowL2PerCycle = 24;
// Instructions of all warps that a multiprocessor begins in a cycle.
constexpr double kRowInstructionsPerCycle = 4;
// What a warp executes in a step besides products and reads of fragments: copies and their
// addresses, the loop, its part of adding to the totals. In SASS for sm_90a 195 to 244 in float32,
// by tile.
constexpr double kRowOtherInstructions = 200;
// Instructions that round a register to tf32.
constexpr double kRowRounding = 2;
// The share of these rates that a multiprocessor is assumed to reach; latency and barriers take the
// rest.
constexpr double kRowShare = 0.85;

// Cycles in which a multiprocessor adds kStepInputs inputs to a tile, without the time in which
// they arrive.
constexpr double step_cycles(RowMode mode, const RowTile& tile) {
  const double chunks = kStepInputs / 4, columns = tile.warp_columns;
  // Of a warp: products, reads of fragments, and cycles of shared memory for one. A fragment of 32
  // x 16 bytes takes four cycles, or two where pairs of lanes read one address (row_staging.cuh).
  double products = 0, fragments = 0, cycles = 4;
  double rounded = 0, weight_bytes = 4;
  if (mode == RowMode::kFloat32) {
    products = kStepInputs * columns;
    fragments = chunks * (4 + columns / 4);
    cycles = 2;
  } else if (mode == RowMode::kTensorFloat32) {
    products = chunks / 2 * 2 * columns / 8;
    fragments = chunks + chunks / 2 * columns / 16;
    rounded = 4 * fragments;
  } else {
    products = 2 * columns / 8;
    // Eight reads of two floats, of two cycles each, are as many cycles as four of four.
    fragments = 4 + columns / 16;
    weight_bytes = 2;
  }
  const double warps = tile.warps();
  const double staged = kStepInputs * (4.0 * tile.rows + weight_bytes * tile.columns);
  const double shared = warps * fragments * cycles + staged / kRowSharedPerCycle;
  const double instructions =
      warps * (products + fragments + kRowRounding * rounded + kRowOtherInstructions);
  const double multiplied = static_cast<double>(tile.rows) * tile.columns * kStepInputs /
                            kRowProductsPerCycle[static_cast<int>(mode)];
  return std::max({multiplied, shared, instructions / kRowInstructionsPerCycle});
}

// Cycles of a launch: those of the multiprocessor that has the most tiles, or those in which the L2
// cache gives all of them what they stage.
inline double row_cycles(std::initializer_list<const RowProduct*> products, RowMode mode,
                         const RowTile& tile, int multiprocessors) {
  double longest = 0, all = 0, bytes = 0;
  for (const RowProduct* p : products) {
    const auto tiles = [](int size, int of) { return static_cast<double>((size + of - 1) / of); };
    const double steps = static_cast<double>(p->all_segments) * p->steps;
    const double row_tiles = tiles(p->rows, tile.rows);
    const double column_tiles = tiles(p->outputs, tile.columns);
    const double cycles = steps * step_cycles(mode, tile);
    if (p->layers > 0) longest = std::max(longest, cycles);
    all += p->layers * row_tiles * column_tiles * cycles;
    bytes += p->layers * steps * kStepInputs *
             (column_tiles * p->rows * 4 +
              row_tiles * p->outputs * (mode == RowMode::kBFloat16 ? 2 : 4));
  }
  if (longest == 0) return 0;
  const double rounds = std::ceil(all / longest / multiprocessors);
  return std::max(rounds * longest / kRowShare, bytes / (kRowL2PerCycle * multiprocessors));
}

// The tile expected to take the least time; of equal ones the largest, which reads least.
inline RowTile best_row_tile(std::initializer_list<const RowProduct*> products, RowMode mode,
                             int multiprocessors) {
  RowTile best = kRowTiles[0];
  double least = row_cycles(products, mode, best, multiprocessors);
  for (const RowTile& tile : kRowTiles) {
    const double cycles = row_cycles(products, mode, tile, multiprocessors);
    if (cycles <= least) {
      best = tile;
      least = cycles;
    }
  }
  return best;
}

}  // namespace vqvae2_fast::cuda::sampler
