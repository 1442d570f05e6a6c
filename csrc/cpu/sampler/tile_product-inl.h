// The matrix product of int8 on tiles, for more rows than a few: two tiles of rows by the two
// halves of a panel, whose words are in the order of tiles already.
//
// All inputs are summed in one go, because integers are exact in any order and a tile holds its
// sums until they are complete. Inputs are read where they lie, with the stride of their rows: a
// window of a convolution overlaps the next one.
#pragma once

#include "kernels.h"

namespace vqvae2_fast::cpu::sampler {
namespace {

#if defined(VQ_HAS_TILES)
static_assert(kPanel * 4 == 2 * kTileBytes);

constexpr int64_t kTileWords = kTileBytes / 4;
constexpr int64_t kLinePair = 2 * kTileBytes;
// Fewer rows are multiplied as vectors. On Intel Sapphire Rapids both take as long with 6 rows if
// the weights are in the second-level cache, and with 8 if they are not.
constexpr int64_t kLeastTileRows = 7;
// Tiles of rows in a block.
constexpr int kBlockTiles = 2;

// A block's sums without `initial`, and the last inputs of its rows where they fill no tile.
struct TileBlock {
  alignas(64) int32_t sums[kBlockTiles * kTileHeight][kPanel];
  alignas(64) uint8_t last[kBlockTiles * kTileHeight][kTileBytes];
};

// The rows of one product as tiles of one height. Tile t has rows first(t) + 0..height - 1 of group
// t / per_group.
struct TileRows {
  const Product& p;
  int64_t height, per_group, first_row, count;

  int64_t group(int64_t t) const { return t / per_group; }
  int64_t row(int64_t t) const { return first_row + t % per_group * height; }
  const uint8_t* a(int64_t t) const { return p.of_group<uint8_t>(group(t)) + row(t) * p.a_stride; }
  const float* initial(int64_t t) const {
    return p.initial + group(t) * p.initial_group_stride + row(t) * p.initial_stride;
  }
  float* c(int64_t t) const { return p.c + group(t) * p.c_group_stride + row(t) * p.c_stride; }
};

// Inputs in tiles: all but the last step take `bytes`; the last one takes those before `inputs`, so
// that nothing is read beyond a panel, with zeros for what the step before has taken.
struct TileInputs {
  int64_t inputs, bytes;

  explicit TileInputs(int64_t stored)
      : inputs(stored), bytes(stored < kTileBytes ? stored : kTileBytes) {}
  int64_t whole_steps() const { return inputs / bytes; }
  int64_t rest() const { return inputs % bytes; }
};

// Copies the last inputs of a block's rows, with zeros before them.
inline void copy_last(const TileRows& rows, int64_t tile, int tiles, const TileInputs& k,
                      TileBlock& block) {
  const int64_t rest = k.rest();
  for (int t = 0; t < tiles; ++t) {
    const uint8_t* a = rows.a(tile + t) + k.inputs - rest;
    for (int64_t r = 0; r < rows.height; ++r, a += rows.p.a_stride) {
      uint8_t* to = block.last[t * kTileHeight + r];
      __builtin_memset(to, 0, kTileBytes);
      __builtin_memcpy(to + kTileBytes - rest, a, rest);
    }
  }
}

template <int TILES>
inline void add_tile_step(const uint8_t* a0, const uint8_t* a1, int64_t a_stride,
                          const float* weights) {
  Tiles::load<6>(weights, 2 * kTileBytes);
  Tiles::load<4>(a0, a_stride);
  Tiles::add_byte_products<0, 4, 6>();
  Tiles::load<7>(weights + kTileWords, 2 * kTileBytes);
  Tiles::add_byte_products<1, 4, 7>();
  if constexpr (TILES > 1) {
    Tiles::load<5>(a1, a_stride);
    Tiles::add_byte_products<2, 5, 6>();
    Tiles::add_byte_products<3, 5, 7>();
  }
}

// Sums of TILES tiles of rows with one panel. Each step brings the weights of the next one into the
// first-level cache, and `ahead_pairs` pairs of lines from `ahead` on into the second.
template <int TILES>
inline void tile_sums(const TileRows& rows, int64_t tile, const TileInputs& k, const float* panel,
                      const char* ahead, int64_t ahead_pairs, TileBlock& block) {
  Tiles::load<0>(panel, 0);
  Tiles::load<1>(panel + kTileWords, 0);
  if constexpr (TILES > 1) {
    Tiles::load<2>(panel, 0);
    Tiles::load<3>(panel + kTileWords, 0);
  }
  const float* weights = panel + kPanel;
  const int64_t stride = rows.p.a_stride, step_words = k.bytes / kQuad * kPanel;
  const uint8_t *a0 = rows.a(tile), *a1 = TILES > 1 ? rows.a(tile + 1) : nullptr;
  for (int64_t step = k.whole_steps(); step > 0; --step) {
    // The hardware fetches the other line of a pair.
    for (int64_t pair = 0; pair < ahead_pairs; ++pair) {
      __builtin_prefetch(ahead + pair * kLinePair, 0, 2);
    }
    ahead += ahead_pairs * kLinePair;
#pragma GCC unroll 32
    for (int64_t line = 0; line < 2 * kTileHeight; ++line) {
      __builtin_prefetch(weights + step_words + line * kTileWords, 0, 3);
    }
    add_tile_step<TILES>(a0, a1, stride, weights);
    a0 += k.bytes;
    if constexpr (TILES > 1) a1 += k.bytes;
    weights += step_words;
  }
  if (k.rest() > 0) {
    weights -= (k.bytes - k.rest()) / kQuad * kPanel;
    add_tile_step<TILES>(block.last[0], block.last[kTileHeight], kTileBytes, weights);
  }
  constexpr int64_t kStride = kPanel * 4;
  Tiles::store<0>(block.sums[0], kStride);
  Tiles::store<1>(&block.sums[0][kTileWords], kStride);
  if constexpr (TILES > 1) {
    Tiles::store<2>(block.sums[kTileHeight], kStride);
    Tiles::store<3>(&block.sums[kTileHeight][kTileWords], kStride);
  }
}

// c = initial + the block's sums.
inline void finish_tiles(const TileRows& rows, int64_t tile, int tiles, int64_t panel,
                         const TileBlock& block) {
  for (int t = 0; t < tiles; ++t) {
    const float* initial = rows.initial(tile + t) + panel * kPanel;
    float* c = rows.c(tile + t) + panel * kPanel;
    for (int64_t r = 0; r < rows.height; ++r) {
#pragma GCC unroll 8
      for (int64_t at = 0; at < kPanel; at += Vec::kLanes) {
        (QuadSum::load(&block.sums[t * kTileHeight + r][at]) +
         QuadSum::load(reinterpret_cast<const int32_t*>(initial + at)))
            .store(reinterpret_cast<int32_t*>(c + at));
      }
      initial += rows.p.initial_stride;
      c += rows.p.c_stride;
    }
  }
}

inline void product_of_tile_rows(const TileRows& rows, const TileInputs& k, TileBlock& block) {
  const Product& p = rows.p;
  const int64_t blocks = (rows.count + kBlockTiles - 1) / kBlockTiles;
  // A step's weights have kTileHeight pairs of lines.
  const int64_t ahead_pairs = (kTileHeight + blocks - 1) / blocks;
  int64_t copied = -1;
  for (int64_t panel = 0; panel < p.panels; ++panel) {
    const float* packed = p.weights + panel * p.panel_stride;
    const char* ahead = reinterpret_cast<const char*>(packed + panel_words(p.format, p.inputs));
    for (int64_t tile = 0; tile < rows.count; tile += kBlockTiles) {
      const int tiles = rows.count - tile < kBlockTiles ? 1 : kBlockTiles;
      if (k.rest() > 0 && copied != tile) {
        copy_last(rows, tile, tiles, k, block);
        copied = tile;
      }
      if (tiles == kBlockTiles) {
        tile_sums<kBlockTiles>(rows, tile, k, packed, ahead, ahead_pairs, block);
      } else {
        tile_sums<1>(rows, tile, k, packed, ahead, ahead_pairs, block);
      }
      ahead += k.whole_steps() * ahead_pairs * kLinePair;
      finish_tiles(rows, tile, tiles, panel, block);
    }
  }
}

inline void product_on_tiles(const Product& p) {
  const TileInputs k(stored_inputs(p.format, p.inputs));
  // Tiles of nearly equal height: 20 rows are 10 + 10. If they are not equal, the last ones follow.
  const int64_t per_group = (p.rows + kTileHeight - 1) / kTileHeight;
  const int64_t height = (p.rows + per_group - 1) / per_group;
  const int64_t whole = p.rows / height, last = p.rows % height;
  TileBlock block;
  Tiles tiles(height, k.bytes);
  product_of_tile_rows({p, height, whole, 0, p.groups * whole}, k, block);
  if (last == 0) return;
  tiles.resize(last, k.bytes);
  product_of_tile_rows({p, last, 1, whole * height, p.groups}, k, block);
}
#endif

}  // namespace
}  // namespace vqvae2_fast::cpu::sampler
