// The matrix product of both phases: a register-blocked tile over packed panels.
//
// Inputs are taken in blocks of kInputBlock: within a block the sum is a chain of fused
// multiply-adds from zero, and the blocks' sums are added in order. So the rounding error grows
// with the block rather than with all inputs, and in the row phase a block's weights stay in the
// first-level cache for all rows. In the pixel phase, with few rows, the weights are read once,
// several panels side by side, so that there are enough independent sums.
#pragma once

#include "kernels.h"

namespace vqvae2_fast::cpu::sampler {
namespace {

// Rows up to which the pixel phase's tiles are used.
constexpr int64_t kFewRows = 2;
// Vectors that a tile covers: two columns of accumulators, or the whole panel if there are few
// rows.
constexpr int kTileVecs = 2;
constexpr int kPanelVecs = static_cast<int>(kPanel) / Vec::kLanes;
constexpr int kFewVecs = kPanelVecs < 4 ? kPanelVecs : 4;
// Panels side by side with few rows: 8 accumulators per row with 32 registers, else 4.
constexpr int kFewPanels = Vec::kLanes == 16 ? 4 : 1;
// How far ahead of its use a line of weights is prefetched with few rows, in floats of all panels
// side by side, which is 8 KiB.
constexpr int64_t kPrefetch = 2048;
// Floats of a cache line, and the second-level cache as a hint of __builtin_prefetch.
constexpr int kLine = 16, kSecondCache = 2;

// VECS vectors of weights of one input, from word `words` of a panel. Vector v of a tile is at
// column<WORDS>(v).
template <int WORDS, int VECS>
inline void load_weights(const float* words, Vec* w) {
  if constexpr (WORDS == kPanel) {
#pragma GCC unroll 8
    for (int v = 0; v < VECS; ++v) w[v] = Vec::load(words + v * Vec::kLanes);
  } else if constexpr (WORDS == kQuarterPanel) {
    const auto* bytes = reinterpret_cast<const int8_t*>(words);
#pragma GCC unroll 8
    for (int v = 0; v < VECS; ++v) w[v] = Vec::load_bytes(bytes + v * Vec::kLanes);
  } else {
#pragma GCC unroll 8
    for (int v = 0; v < VECS; v += 2) Vec::load_halves(words + v / 2 * Vec::kLanes, w[v], w[v + 1]);
  }
}

template <int WORDS>
constexpr int64_t column(int v) {
  return WORDS == kHalfPanel ? v / 2 * Vec::kLanes + v % 2 * kHalfPanel : v * Vec::kLanes;
}

// A block of one panel as float32, [inputs, kPanel].
template <int WORDS>
inline void unpack_block(const float* words, int64_t inputs, float* weights) {
  for (int64_t k = 0; k < inputs; ++k, words += WORDS, weights += kPanel) {
    Vec w[kPanelVecs];
    load_weights<WORDS, kPanelVecs>(words, w);
#pragma GCC unroll 8
    for (int v = 0; v < kPanelVecs; ++v) w[v].store(weights + column<WORDS>(v));
  }
}

// c = initial + a times weights, for at most kInputBlock inputs. HINT is that of
// __builtin_prefetch: 0 for weights that should not stay in the caches. With more than kFewRows
// rows, memory from `ahead` on is prefetched, one line every `ahead_step` floats for each input.
template <int HINT, int WORDS, bool SCALED, int ROWS, int PANELS, int VECS>
inline void product_tile(const float* a, int64_t a_stride, const float* weights,
                         int64_t panel_stride, int64_t inputs, const float* initial,
                         int64_t initial_stride, float* c, int64_t c_stride, const float* scales,
                         const float* ahead, int64_t ahead_step) {
  constexpr int kColumns = PANELS * VECS;
  Vec sums[ROWS][kColumns];
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kColumns; ++v) sums[r][v] = Vec::broadcast(0.0f);
  }
  // Every third row has its own pointer, so that the loop's addresses fit into registers. By itself
  // the compiler keeps an offset for each row, some of them in vector registers.
  constexpr int kThirds = (ROWS + 2) / 3;
  const float* thirds[kThirds];
#pragma GCC unroll 4
  for (int i = 0; i < kThirds; ++i) {
    thirds[i] = a + 3 * i * a_stride;
    asm("" : "+r"(thirds[i]));
  }
  for (int64_t k = 0; k < inputs; ++k) {
    Vec w[kColumns];
#pragma GCC unroll 4
    for (int panel = 0; panel < PANELS; ++panel) {
      const float* words = weights + panel * panel_stride;
      load_weights<WORDS, VECS>(words, w + panel * VECS);
      if (ROWS <= kFewRows) {
        for (int line = 0; line < WORDS; line += kLine) {
          __builtin_prefetch(words + line + kPrefetch / PANELS, 0, HINT);
        }
      }
    }
    weights += WORDS;
    if (ROWS > kFewRows) {
      __builtin_prefetch(ahead, 0, kSecondCache);
      ahead += ahead_step;
    }
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r) {
      const Vec x = Vec::broadcast(thirds[r / 3][r % 3 * a_stride]);
#pragma GCC unroll 8
      for (int v = 0; v < kColumns; ++v) sums[r][v] = sums[r][v].add_product_fused(x, w[v]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kThirds; ++i) ++thirds[i];
  }
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kColumns; ++v) {
      const int64_t at = v / VECS * kPanel + column<WORDS>(v % VECS);
      const Vec before = Vec::load(initial + r * initial_stride + at);
      Vec after = before + sums[r][v];
      if constexpr (SCALED) {
        after = before.add_product_fused(sums[r][v], Vec::load(scales + at));
      }
      after.store(c + r * c_stride + at);
    }
  }
}

// product_tile with `rows` known at run time, 1..ROWS.
template <int HINT, int WORDS, bool SCALED, int ROWS, int PANELS, int VECS>
inline void product_tile_of(int64_t rows, const float* a, int64_t a_stride, const float* weights,
                            int64_t panel_stride, int64_t inputs, const float* initial,
                            int64_t initial_stride, float* c, int64_t c_stride, const float* scales,
                            const float* ahead, int64_t ahead_step) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) {
      product_tile_of<HINT, WORDS, SCALED, ROWS - 1, PANELS, VECS>(
          rows, a, a_stride, weights, panel_stride, inputs, initial, initial_stride, c, c_stride,
          scales, ahead, ahead_step);
      return;
    }
  }
  product_tile<HINT, WORDS, SCALED, ROWS, PANELS, VECS>(a, a_stride, weights, panel_stride, inputs,
                                                        initial, initial_stride, c, c_stride,
                                                        scales, ahead, ahead_step);
}

// All blocks of PANELS panels, from `panel`, for every row. UNPACKS: a block is converted to
// float32 before its rows, which pays from three tiles on.
template <int HINT, int WORDS, bool UNPACKS, int ROWS, int PANELS, int VECS>
inline void product_panels(const Product& p, int64_t panel, int64_t tile_rows) {
  constexpr int kWords = UNPACKS ? static_cast<int>(kPanel) : WORDS;
  constexpr bool kScaled = WORDS == kQuarterPanel;
  alignas(64) float unpacked[UNPACKS ? kInputBlock * kPanel : 1];
  // The tiles of this block prefetch the next one in equal parts. A single tile prefetches every
  // second line, because the hardware fetches its neighbour too.
  const int64_t tiles = p.groups * ((p.rows + tile_rows - 1) / tile_rows) * (kPanelVecs / VECS);
  const int64_t ahead_step = (WORDS + tiles - 1) / tiles;
  for (int64_t first = 0; first < p.inputs || first == 0; first += kInputBlock) {
    const int64_t left = p.inputs - first;
    const int64_t inputs = left < kInputBlock ? left : kInputBlock;
    // The sums of the earlier blocks are in c.
    const float* initial = first == 0 ? p.initial : p.c;
    const int64_t initial_group_stride = first == 0 ? p.initial_group_stride : p.c_group_stride;
    const int64_t initial_stride = first == 0 ? p.initial_stride : p.c_stride;
    const float* weights = p.weights + panel * p.panel_stride + first * WORDS;
    const float* ahead = weights + kInputBlock * WORDS;
    if constexpr (UNPACKS) {
      unpack_block<WORDS>(weights, inputs, unpacked);
      weights = unpacked;
    }
    for (int64_t g = 0; g < p.groups; ++g) {
      for (int64_t row = 0; row < p.rows; row += tile_rows) {
        const int64_t rows = p.rows - row < tile_rows ? p.rows - row : tile_rows;
        const float* a = p.a + g * p.a_group_stride + row * p.a_stride + first;
        for (int v = 0; v < kPanelVecs; v += VECS) {
          const int64_t at = panel * kPanel + column<kWords>(v);
          product_tile_of<HINT, kWords, kScaled, ROWS, PANELS, VECS>(
              rows, a, p.a_stride, weights + v * kWords / kPanelVecs, p.panel_stride, inputs,
              initial + g * initial_group_stride + row * initial_stride + at, initial_stride,
              p.c + g * p.c_group_stride + row * p.c_stride + at, p.c_stride,
              p.scales ? p.scales + at : nullptr, ahead, ahead_step);
          ahead += kInputBlock * ahead_step;
        }
      }
    }
  }
}

// The last 0..PANELS panels with few rows, side by side.
template <int HINT, int WORDS, int PANELS>
inline void product_last_panels(const Product& p, int64_t panel) {
  if constexpr (PANELS > 0) {
    if (p.panels - panel == PANELS) {
      product_panels<HINT, WORDS, false, kFewRows, PANELS, kFewVecs>(p, panel, p.rows);
    } else {
      product_last_panels<HINT, WORDS, PANELS - 1>(p, panel);
    }
  }
}

template <int HINT, int WORDS>
inline void product_of_few_rows(const Product& p) {
  int64_t panel = 0;
  for (; panel + kFewPanels <= p.panels; panel += kFewPanels) {
    product_panels<HINT, WORDS, false, kFewRows, kFewPanels, kFewVecs>(p, panel, p.rows);
  }
  product_last_panels<HINT, WORDS, kFewPanels - 1>(p, panel);
}

template <int WORDS>
inline void product_of(const Product& p) {
  constexpr int kKeep = 3, kUseOnce = 0;
  if (p.rows <= kFewRows) {
    if (p.once) {
      product_of_few_rows<kUseOnce, WORDS>(p);
    } else {
      product_of_few_rows<kKeep, WORDS>(p);
    }
    return;
  }
  // Tiles of nearly equal size: 32 rows are 11 + 11 + 10, not 12 + 12 + 8.
  const int64_t tiles = (p.rows + Vec::kTileRows - 1) / Vec::kTileRows;
  const int64_t tile_rows = (p.rows + tiles - 1) / tiles;
  constexpr bool kUnpacks = WORDS != kPanel;
  for (int64_t panel = 0; panel < p.panels; ++panel) {
    if (p.groups * tiles > 2) {
      product_panels<kKeep, WORDS, kUnpacks, Vec::kTileRows, 1, kTileVecs>(p, panel, tile_rows);
    } else {
      product_panels<kKeep, WORDS, false, Vec::kTileRows, 1, kTileVecs>(p, panel, tile_rows);
    }
  }
}

inline void product(const Product& p) {
  if (p.words == kPanel) {
    product_of<kPanel>(p);
  } else if (p.words == kHalfPanel) {
    product_of<kHalfPanel>(p);
  } else {
    product_of<kQuarterPanel>(p);
  }
}

}  // namespace
}  // namespace vqvae2_fast::cpu::sampler
