// The screen on tiles: products of bfloat16, 32 rows with 32 codes at a time. Include after a simd/
// header.
//
// Its scores are less exact than those of int16 but come at several times their rate; rows that
// they leave open go to the next screen.
#pragma once

#include "screen-inl.h"

namespace vqvae2_fast::cpu {
namespace {

#if defined(VQ_HAS_TILES)
static_assert(kTileWidth == kTileBytes / 4 && kTileDims == 2 * kTileHeight);

// Rows of a block of two tiles.
constexpr int64_t kTilesRows = 2 * kTileHeight;
// Codes that stay in the first-level cache for all rows.
constexpr int64_t kTileCacheBytes = 16 << 10;

struct TileScreen {
  using Word = uint32_t;  // two bfloat16
  static constexpr int64_t kTileRows = kTilesRows;
  static constexpr int kDimsPerWord = 2;
  // The processor adds the even and the odd dimensions of a tile in two chains, then both to the
  // sum; products and sums may be rounded apart.
  static double roundings(int64_t dim) { return static_cast<double>(dim) + 2 * kTileHeight; }
  static double code_residual(const PackedCodebook& codebook) { return codebook.tiles.residual; }
};

// Writes m - z as bfloat16, [chunks of kTileDims, kTileHeight, kTileDims] for every tile of rows.
template <>
inline void stage_rows<TileScreen>(const PackedCodebook& codebook, const float* const* rows,
                                   const int64_t* list, int64_t count, uint32_t* tiles,
                                   StagedRows staged) {
  const int64_t dim = codebook.dim, chunks = tile_chunks(dim);
  for (int64_t i = 0; i < count; ++i) {
    uint32_t* const first =
        tiles + (i / kTileHeight * chunks * kTileHeight + i % kTileHeight) * (kTileDims / 2);
    Vec squares = Vec::broadcast(0.0f), errors = squares;
    if (dim % kTileDims) {
      __builtin_memset(first + (chunks - 1) * kTileHeight * (kTileDims / 2), 0, kTileBytes);
    }
    for_each_centered(rows[list[i]], codebook, [&](int64_t d, Vec values) {
      auto* const out = reinterpret_cast<uint16_t*>(
          first + d / kTileDims * kTileHeight * (kTileDims / 2) + d % kTileDims / 2);
      const Vec error = values - store_bfloat16(values, out);
      squares = squares.add_product(values, values);
      errors = errors.add_product(error, error);
    });
    staged.norms[i] = lane_sum(squares);
    staged.errors[i] = lane_sum(errors);
    staged.units[i] = 1;
  }
  for (int64_t i = 0; i < count; ++i) {
    staged.norms[i] = norm_above(staged.norms[i], dim);
    // The last term is the rounding of m - z.
    staged.errors[i] = norm_above(staged.errors[i], dim) + staged.norms[i] * 0x1.01p-24f;
  }
}

// Scores of a tile of rows with both tiles of a panel.
struct TileScores {
  float of[kTileHeight][2][kTileWidth];
};

// Updates the two least scores of rows first..last of a tile, and of each lane, with a panel.
inline void keep_tile_scores(const TileScores& scores, const float* half_norms, int64_t panel,
                             const Tags& tags, int64_t first, int64_t last, Vec* best,
                             Vec* second) {
  constexpr int kVecs = static_cast<int>(kTilePanel) / Vec::kLanes;
  uint32_t tag[kVecs];
  Vec halves[kVecs];
  for (int v = 0; v < kVecs; ++v) {
    tag[v] = static_cast<uint32_t>((panel * kVecs + v) >> tags.shift);
    halves[v] = Vec::load(half_norms + panel * kTilePanel + v * Vec::kLanes);
  }
  for (int64_t r = first; r < last; ++r) {
    Vec least = best[r], next = second[r];
#pragma GCC unroll 8
    for (int v = 0; v < kVecs; ++v) {
      const Vec score = Vec::load(&scores.of[r][0][0] + v * Vec::kLanes) + halves[v];
      keep_two_least(score, ~tags.mask, tag[v], least, next);
    }
    best[r] = least;
    second[r] = next;
  }
}

// The products of one tile of rows with a panel, and where their scores go.
struct TileTurn {
  int64_t panel;
  const uint32_t* rows;
  Vec *best, *second;  // null before the first
};

// Multiplies `now` in tiles SUMS and SUMS + 1, stores what the turn before has left in the other
// two, and compares the scores of the turn before that. None waits for another, and the
// instructions alternate, because a processor looks only some hundred ahead. Sapphire Rapids still
// overlaps little of it.
template <int SUMS>
inline void take_turn(const PackedCodebook& codebook, const Tags& tags, const TileTurn& now,
                      const TileTurn& compared, TileScores* scores) {
  constexpr int64_t kTile = kTileHeight * kTileBytes;
  constexpr int kBefore = 2 - SUMS;
  const int64_t chunks = tile_chunks(codebook.dim);
  const char* rows = reinterpret_cast<const char*>(now.rows);
  const char* codes =
      reinterpret_cast<const char*>(codebook.tiles.panels) + now.panel * chunks * 2 * kTile;
  Tiles::zero<SUMS>();
  Tiles::zero<SUMS + 1>();
  int64_t kept = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk, rows += kTile, codes += 2 * kTile) {
    Tiles::load<4>(rows, kTileBytes);
    Tiles::load<5>(codes, kTileBytes);
    Tiles::load<6>(codes + kTile, kTileBytes);
    Tiles::add_bfloat16_products<SUMS, 4, 5>();
    Tiles::add_bfloat16_products<SUMS + 1, 4, 6>();
    const int64_t end = (chunk + 1) * kTileHeight / chunks;
    if (compared.best) {
      keep_tile_scores(scores[SUMS / 2], codebook.half_norms, compared.panel, tags, kept, end,
                       compared.best, compared.second);
    }
    kept = end;
    if (chunk == 0) {
      Tiles::store<kBefore>(scores[kBefore / 2].of[0][0], 2 * kTileBytes);
      Tiles::store<kBefore + 1>(scores[kBefore / 2].of[0][1], 2 * kTileBytes);
    }
  }
}

// Their two places are the halves of a page: a load whose address agrees with that of an unfinished
// store in the last 12 bits would wait for it.
template <>
inline void screen_tiles<TileScreen>(const PackedCodebook& codebook, const Tags& tags,
                                     const uint32_t* rows, const float*, int64_t num_tiles,
                                     Vec* best, Vec* second) {
  const int64_t chunks = tile_chunks(codebook.dim);
  const int64_t row_words = chunks * kTileHeight * kTileDims / 2;
  const int64_t num_panels = (codebook.num_codes + kTilePanel - 1) / kTilePanel;
  int64_t panels_at_once = kTileCacheBytes / (chunks * kTilePanel * kTileDims * 2);
  if (panels_at_once < 1) panels_at_once = 1;
  for (int64_t r = 0; r < num_tiles * kTilesRows; ++r) {
    best[r] = second[r] = Vec::broadcast(INFINITY);
  }
  const Tiles configured;
  alignas(4096) TileScores scores[2];
  const auto turn = [&](int64_t tile, int64_t panel) {
    return TileTurn{panel, rows + tile * row_words, best + tile * kTileHeight,
                    second + tile * kTileHeight};
  };
  TileTurn even = {}, odd = {};
  for (int64_t first = 0; first < num_panels; first += panels_at_once) {
    const int64_t last = first + panels_at_once < num_panels ? first + panels_at_once : num_panels;
    for (int64_t tile = 0; tile < 2 * num_tiles; tile += 2) {
      for (int64_t panel = first; panel < last; ++panel) {
        const TileTurn even_before = even, odd_before = odd;
        even = turn(tile, panel);
        take_turn<0>(codebook, tags, even, even_before, scores);
        odd = turn(tile + 1, panel);
        take_turn<2>(codebook, tags, odd, odd_before, scores);
      }
    }
  }
  take_turn<0>(codebook, tags, even, even, scores);
  keep_tile_scores(scores[1], codebook.half_norms, odd.panel, tags, 0, kTileHeight, odd.best,
                   odd.second);
}
#endif

}  // namespace
}  // namespace vqvae2_fast::cpu
