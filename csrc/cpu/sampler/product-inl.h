// The matrix product of both phases: a register-blocked tile over packed panels.
//
// Inputs are taken in blocks of kBlock: within a block the sum is a chain of fused
// multiply-adds from zero, and the blocks' sums are added in order. So the rounding error grows
// with the block rather than with all inputs, and in the row phase a block's weights stay in the
// first-level cache for all rows. In the pixel phase, with few rows, the weights are read once,
// several panels side by side, so that there are enough independent sums.
#pragma once

#include <type_traits>

#include "kernels.h"
#include "tile_product-inl.h"

namespace vqvae2_fast::cpu::sampler {
namespace {

// Rows up to which the pixel phase's tiles are used.
constexpr int64_t kFewProductRows = 2;
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
// Steps of a block: its weights are 16 KiB at most, half of a 32 KiB first cache; the rest is for
// rows of a.
constexpr int64_t kBlockSteps = 128;

// Numbers of a format: a step takes kStep values of type Input, and kPanel words of a panel.
struct FloatNumbers {
  using Input = float;
  using Weights = Vec;
  using Sum = Vec;
  static constexpr Format kFormat = Format::kFloat32;
  static constexpr int64_t kStep = 1, kBlock = kBlockSteps;
  static constexpr int64_t kHeader = 0;  // words before those of the first step
  static constexpr int64_t kTileRows = Vec::kTileRows;

  static Sum zero() { return Vec::broadcast(0.0f); }
  static Weights load(const float* words) { return Vec::load(words); }
  static Vec broadcast(const float* input) { return Vec::broadcast(*input); }
  static Sum add(Sum sum, Vec x, Vec w) { return sum.add_product_fused(x, w); }
  static void finish(Sum sum, const float* initial, const float* /*header*/, float* c) {
    (Vec::load(initial) + sum).store(c);
  }
};

// int8 in int32, with the sums of products that the level has.
template <class QUADS>
struct QuadNumbers {
  using Input = uint8_t;
  using Weights = typename QUADS::Weights;
  using Sum = QUADS;
  static constexpr Format kFormat = Format::kQuads;
  static constexpr int64_t kStep = kQuad, kBlock = kBlockSteps * kStep;
  static constexpr int64_t kHeader = kPanel;
  static constexpr int64_t kTileRows = QUADS::kTileRows;

  static Sum zero() { return QUADS::zero(); }
  static Weights load(const float* words) {
    return QUADS::load_weights(reinterpret_cast<const int8_t*>(words));
  }
  static auto broadcast(const uint8_t* inputs) { return QUADS::broadcast(inputs); }
  static Sum add(Sum sum, typename QUADS::Inputs x, Weights w) { return sum.add_products(x, w); }
  // header: what makes up for the 128 of all inputs, or null if that has been added.
  static void finish(Sum sum, const float* initial, const float* header, float* c) {
    sum = sum + QUADS::load(reinterpret_cast<const int32_t*>(initial));
    if (QUADS::kBiased && header) {
      sum = sum + QUADS::load(reinterpret_cast<const int32_t*>(header));
    }
    sum.store(reinterpret_cast<int32_t*>(c));
  }
};

#if defined(VQ_SPLITS_QUADS)
// Pairs of int16, to which a level without products of bytes converts a block of one panel, and its
// rows, before the tiles: it would otherwise do so in each tile. Each group of kLanes quads has the
// pairs of its even inputs first, then those of its odd ones.
struct PairNumbers {
  using Input = uint32_t;
  using Weights = QuadSum::Lanes;
  using Sum = QuadSum;
  static constexpr int64_t kStep = 1, kBlock = kBlockSteps * 2;
  static constexpr int64_t kLanes = Vec::kLanes;

  static void unpack(const float* words, int64_t inputs, float* weights) {
    auto* pairs = reinterpret_cast<uint32_t*>(weights);
    for (int64_t left = inputs / kQuad; left > 0; left -= kLanes) {
      const int64_t quads = left < kLanes ? left : kLanes;
      for (int64_t q = 0; q < quads; ++q, words += kPanel, pairs += kPanel) {
#pragma GCC unroll 8
        for (int64_t at = 0; at < kPanel; at += kLanes) {
          const auto* bytes = reinterpret_cast<const int8_t*>(words + at);
          const QuadSum::Weights w = QuadSum::load_weights(bytes);
          __builtin_memcpy(pairs + at, &w.even, sizeof(w.even));
          __builtin_memcpy(pairs + quads * kPanel + at, &w.odd, sizeof(w.odd));
        }
      }
      pairs += quads * kPanel;
    }
  }

  // The inputs of one row likewise.
  static void convert(const uint8_t* a, int64_t inputs, uint32_t* pairs) {
    for (int64_t left = inputs / kQuad; left > 0; left -= kLanes) {
      const int64_t quads = left < kLanes ? left : kLanes;
      uint8_t last[kLanes * kQuad] = {};
      if (quads < kLanes) __builtin_memcpy(last, a, quads * kQuad);
      const QuadSum::Inputs x = QuadSum::load_inputs(quads < kLanes ? last : a);
      __builtin_memcpy(pairs, &x.even, quads * sizeof(uint32_t));
      __builtin_memcpy(pairs + quads, &x.odd, quads * sizeof(uint32_t));
      a += kLanes * kQuad;
      pairs += 2 * quads;
    }
  }

  static Sum zero() { return QuadSum::zero(); }
  static Weights load(const float* words) {
    Weights w;
    __builtin_memcpy(&w, words, sizeof(w));
    return w;
  }
  static Weights broadcast(const uint32_t* pair) { return *pair - Weights{}; }
  static Sum add(Sum sum, Weights x, Weights w) { return sum.add_pairs(x, w); }
};
#endif

// c = initial + a times weights, for at most a block of inputs. HINT is that of __builtin_prefetch:
// 0 for weights that should not stay in the caches. With more than kFewProductRows rows, memory
// from `ahead` on is prefetched, one line every `ahead_step` floats in each step.
template <int HINT, class N, class SUMS, int ROWS, int PANELS, int VECS>
inline void product_tile(const typename N::Input* a, int64_t a_stride, const float* weights,
                         int64_t panel_stride, int64_t steps, const float* initial,
                         int64_t initial_stride, float* c, int64_t c_stride, const float* header,
                         const float* ahead, int64_t ahead_step) {
  constexpr int kColumns = PANELS * VECS;
  typename N::Sum sums[ROWS][kColumns];
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kColumns; ++v) sums[r][v] = N::zero();
  }
  // Every third row has its own pointer, so that the loop's addresses fit into registers. By itself
  // the compiler keeps an offset for each row, some of them in vector registers.
  constexpr int kThirds = (ROWS + 2) / 3;
  const typename N::Input* thirds[kThirds];
#pragma GCC unroll 4
  for (int i = 0; i < kThirds; ++i) {
    thirds[i] = a + 3 * i * a_stride;
    asm("" : "+r"(thirds[i]));
  }
  for (int64_t k = 0; k < steps; ++k) {
    typename N::Weights w[kColumns];
#pragma GCC unroll 4
    for (int panel = 0; panel < PANELS; ++panel) {
      const float* words = weights + panel * panel_stride;
#pragma GCC unroll 8
      for (int v = 0; v < VECS; ++v) w[panel * VECS + v] = N::load(words + v * Vec::kLanes);
      if (ROWS <= kFewProductRows) {
        for (int line = 0; line < kPanel; line += kLine) {
          __builtin_prefetch(words + line + kPrefetch / PANELS, 0, HINT);
        }
      }
    }
    weights += kPanel;
    if (ROWS > kFewProductRows) {
      __builtin_prefetch(ahead, 0, kSecondCache);
      ahead += ahead_step;
    }
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r) {
      const auto x = N::broadcast(thirds[r / 3] + r % 3 * a_stride);
#pragma GCC unroll 8
      for (int v = 0; v < kColumns; ++v) sums[r][v] = N::add(sums[r][v], x, w[v]);
    }
#pragma GCC unroll 4
    for (int i = 0; i < kThirds; ++i) thirds[i] += N::kStep;
  }
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kColumns; ++v) {
      const int64_t in_panel = v % VECS * Vec::kLanes, at = v / VECS * kPanel + in_panel;
      SUMS::finish(sums[r][v], initial + r * initial_stride + at,
                   header ? header + v / VECS * panel_stride + in_panel : nullptr,
                   c + r * c_stride + at);
    }
  }
}

// product_tile with `rows` known at run time, 1..ROWS.
template <int HINT, class N, class SUMS, int ROWS, int PANELS, int VECS, class... Rest>
inline void product_tile_of(int64_t rows, Rest... rest) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) {
      product_tile_of<HINT, N, SUMS, ROWS - 1, PANELS, VECS>(rows, rest...);
      return;
    }
  }
  product_tile<HINT, N, SUMS, ROWS, PANELS, VECS>(rest...);
}

// All blocks of PANELS panels, from `panel`, for every row. A block is converted first if its
// numbers are not those stored.
template <int HINT, class Stored, class N, int ROWS, int PANELS, int VECS>
inline void product_panels(const Product& p, int64_t panel, int64_t tile_rows) {
  constexpr bool UNPACKS = !std::is_same_v<N, Stored>;
  alignas(64) float unpacked[UNPACKS ? kBlockSteps * kPanel : 1];
  alignas(64) typename N::Input converted[UNPACKS ? ROWS * kBlockSteps : 1];
  // The tiles of this block prefetch the next one in equal parts. A single tile prefetches every
  // second line, because the hardware fetches its neighbour too.
  constexpr int64_t kBlockWords = N::kBlock / Stored::kStep * kPanel;
  const int64_t tiles = p.groups * ((p.rows + tile_rows - 1) / tile_rows) * (kPanelVecs / VECS);
  const int64_t ahead_step = (kBlockWords / kBlockSteps + tiles - 1) / tiles;
  const float* const packed = p.weights + panel * p.panel_stride;
  for (int64_t first = 0; first < p.inputs || first == 0; first += N::kBlock) {
    const int64_t left = p.inputs - first;
    const int64_t inputs = left < N::kBlock ? left : N::kBlock;
    const int64_t stored = stored_inputs(Stored::kFormat, inputs),
                  steps = stored * kBlockSteps / N::kBlock;
    // The sums of the earlier blocks are in c.
    const float* initial = first == 0 ? p.initial : p.c;
    const int64_t initial_group_stride = first == 0 ? p.initial_group_stride : p.c_group_stride;
    const int64_t initial_stride = first == 0 ? p.initial_stride : p.c_stride;
    const float* header = first == 0 && Stored::kHeader > 0 ? packed : nullptr;
    const float* weights = packed + Stored::kHeader + first / Stored::kStep * kPanel;
    const float* ahead = weights + kBlockWords;
    if constexpr (UNPACKS) {
      N::unpack(weights, stored, unpacked);
      weights = unpacked;
    }
    for (int64_t g = 0; g < p.groups; ++g) {
      for (int64_t row = 0; row < p.rows; row += tile_rows) {
        const int64_t rows = p.rows - row < tile_rows ? p.rows - row : tile_rows;
        const auto* from =
            p.template of_group<typename Stored::Input>(g) + row * p.a_stride + first;
        const typename N::Input* tile_a;
        int64_t a_stride = p.a_stride;
        if constexpr (UNPACKS) {
          for (int64_t r = 0; r < rows; ++r) {
            N::convert(from + r * p.a_stride, stored, converted + r * kBlockSteps);
          }
          tile_a = converted, a_stride = kBlockSteps;
        } else {
          tile_a = from;
        }
        for (int v = 0; v < kPanelVecs; v += VECS) {
          const int64_t in_panel = v * Vec::kLanes, at = panel * kPanel + in_panel;
          product_tile_of<HINT, N, Stored, ROWS, PANELS, VECS>(
              rows, tile_a, a_stride, weights + in_panel, p.panel_stride, steps,
              initial + g * initial_group_stride + row * initial_stride + at, initial_stride,
              p.c + g * p.c_group_stride + row * p.c_stride + at, p.c_stride,
              header ? header + in_panel : nullptr, ahead, ahead_step);
          ahead += kBlockSteps * ahead_step;
        }
      }
    }
  }
}

// The last 0..PANELS panels with few rows, side by side.
template <int HINT, class N, int PANELS>
inline void product_last_panels(const Product& p, int64_t panel) {
  if constexpr (PANELS > 0) {
    if (p.panels - panel == PANELS) {
      product_panels<HINT, N, N, kFewProductRows, PANELS, kFewVecs>(p, panel, p.rows);
    } else {
      product_last_panels<HINT, N, PANELS - 1>(p, panel);
    }
  }
}

template <int HINT, class N>
inline void product_of_few_rows(const Product& p) {
  int64_t panel = 0;
  for (; panel + kFewPanels <= p.panels; panel += kFewPanels) {
    product_panels<HINT, N, N, kFewProductRows, kFewPanels, kFewVecs>(p, panel, p.rows);
  }
  product_last_panels<HINT, N, kFewPanels - 1>(p, panel);
}

// OfTile: the numbers of tiles with more than a few rows.
template <class N, class OfTile = N>
inline void product_of(const Product& p) {
  constexpr int kKeep = 3, kUseOnce = 0;
  if (p.rows <= kFewProductRows) {
    if (p.once) {
      product_of_few_rows<kUseOnce, N>(p);
    } else {
      product_of_few_rows<kKeep, N>(p);
    }
    return;
  }
#if defined(VQ_HAS_TILES)
  if constexpr (N::kFormat == Format::kQuads) {
    if (p.rows >= kLeastTileRows) return product_on_tiles(p);
  }
#endif
  // Tiles of nearly equal size: 32 rows are 11 + 11 + 10, not 12 + 12 + 8.
  const int64_t tiles = (p.rows + N::kTileRows - 1) / N::kTileRows;
  const int64_t tile_rows = (p.rows + tiles - 1) / tiles;
  for (int64_t panel = 0; panel < p.panels; ++panel) {
    product_panels<kKeep, N, OfTile, N::kTileRows, 1, kTileVecs>(p, panel, tile_rows);
  }
}

inline void product(const Product& p) {
  if (p.format == Format::kFloat32) return product_of<FloatNumbers>(p);
#if defined(VQ_HAS_DOT_SUMS)
  if (has_dot_products()) return product_of<QuadNumbers<DotSum>>(p);
#endif
#if defined(VQ_SPLITS_QUADS)
  product_of<QuadNumbers<QuadSum>, PairNumbers>(p);
#else
  product_of<QuadNumbers<QuadSum>>(p);
#endif
}

}  // namespace
}  // namespace vqvae2_fast::cpu::sampler
