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
constexpr int kPanelVecs = static_cast<int>(kTilePanel) / Vec::kLanes;

struct TileScreen {
  using Word = uint32_t;  // two bfloat16
  static constexpr int64_t kTileRows = kTilesRows;
  static constexpr int kDimsPerWord = 2;
  // The processor adds the even and the odd dimensions of a tile in two chains, then both to the
  // sum; products and sums may be rounded apart.
  static double roundings(int64_t dim) { return static_cast<double>(dim) + 2 * kTileHeight; }
  static double code_residual(const PackedCodebook& codebook) { return codebook.tiles.residual; }
  static bool halves_of_stored(const PackedCodebook& codebook) { return codebook.halves_of_stored; }
  static bool has_groups(const PackedCodebook& codebook) {
    return codebook.num_codes >= kFewestGroupedCodes && codebook.dim <= kMostGroupedDims;
  }
  static int tag_shift(const PackedCodebook& codebook) {
    return has_groups(codebook) ? __builtin_ctz(kGroupPanels * kPanelVecs) : 0;
  }
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
  squares_to_norms(staged.norms, count, dim);
  squares_to_norms(staged.errors, count, dim);
  add_centering(staged, count);
}

// Scores of a tile of rows with both tiles of a panel.
struct TileScores {
  float of[kTileHeight][2][kTileWidth];
};

// The scores of a row with vector v of a panel.
inline Vec tile_score(const TileScores& scores, int64_t row, int v, Vec half_norms) {
  return Vec::load(&scores.of[row][0][0] + v * Vec::kLanes) + half_norms;
}

// Updates the two least scores of rows first..last of a tile, and of each lane, with a panel.
inline void keep_tile_scores(const TileScores& scores, const float* half_norms, int64_t panel,
                             const Tags& tags, int64_t first, int64_t last, Vec* best,
                             Vec* second) {
  uint32_t tag[kPanelVecs];
  Vec halves[kPanelVecs];
  for (int v = 0; v < kPanelVecs; ++v) {
    tag[v] = static_cast<uint32_t>((panel * kPanelVecs + v) >> tags.shift);
    halves[v] = Vec::load(half_norms + panel * kTilePanel + v * Vec::kLanes);
  }
  for (int64_t r = first; r < last; ++r) {
    Vec least = best[r], next = second[r];
#pragma GCC unroll 8
    for (int v = 0; v < kPanelVecs; ++v) {
      keep_two_least(tile_score(scores, r, v, halves[v]), ~tags.mask, tag[v], least, next);
    }
    best[r] = least;
    second[r] = next;
  }
}

// The same with the least scores of a group. A score that is NaN hides its group, but only in rows
// that have no finite bound.
inline void keep_group_scores(const TileScores* scores, const float* half_norms, int64_t group,
                              const Tags& tags, int64_t first, int64_t last, Vec* best,
                              Vec* second) {
  constexpr int kVecs = static_cast<int>(kGroupPanels) * kPanelVecs;
  const uint32_t tag = static_cast<uint32_t>((group * kVecs) >> tags.shift);
  Vec halves[kVecs];
  for (int v = 0; v < kVecs; ++v) {
    halves[v] = Vec::load(half_norms + (group * kVecs + v) * Vec::kLanes);
  }
  for (int64_t r = first; r < last; ++r) {
    Vec least = tile_score(scores[0], r, 0, halves[0]);
#pragma GCC unroll 8
    for (int v = 1; v < kVecs; ++v) {
      const TileScores& panel = scores[v / kPanelVecs];
      least = least.at_most(tile_score(panel, r, v % kPanelVecs, halves[v]));
    }
    keep_two_least(least, ~tags.mask, tag, best[r], second[r]);
  }
}

// Multiplies a tile of rows with a panel in tiles SUMS and SUMS + 1. After each chunk of
// dimensions, between(first, last) is called with the next share of kTileHeight.
template <int SUMS, class Between>
inline void multiply_panel(const PackedCodebook& codebook, const uint32_t* words, int64_t panel,
                           const Between& between) {
  constexpr int64_t kTile = kTileHeight * kTileBytes;
  const int64_t chunks = tile_chunks(codebook.dim);
  const char* rows = reinterpret_cast<const char*>(words);
  const char* codes =
      reinterpret_cast<const char*>(codebook.tiles.panels) + panel * chunks * 2 * kTile;
  Tiles::zero<SUMS>();
  Tiles::zero<SUMS + 1>();
  int64_t first = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk, rows += kTile, codes += 2 * kTile) {
    Tiles::load<4>(rows, kTileBytes);
    Tiles::load<5>(codes, kTileBytes);
    Tiles::load<6>(codes + kTile, kTileBytes);
    Tiles::add_bfloat16_products<SUMS, 4, 5>();
    Tiles::add_bfloat16_products<SUMS + 1, 4, 6>();
    const int64_t last = (chunk + 1) * kTileHeight / chunks;
    between(first, last);
    first = last;
  }
}

template <int SUMS>
inline void store_scores(TileScores* scores) {
  Tiles::store<SUMS>(scores->of[0][0], 2 * kTileBytes);
  Tiles::store<SUMS + 1>(scores->of[0][1], 2 * kTileBytes);
}

// A tile of rows and the panel or group that it is multiplied with, and where its scores go.
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
  constexpr int kBefore = 2 - SUMS;
  multiply_panel<SUMS>(codebook, now.rows, now.panel, [&](int64_t first, int64_t last) {
    if (compared.best) {
      keep_tile_scores(scores[SUMS / 2], codebook.tiles.half_norms, compared.panel, tags, first,
                       last, compared.best, compared.second);
    }
    if (first == 0) store_scores<kBefore>(scores + kBefore / 2);
  });
}

// The same with a group, whose scores are stored at once; those of the turn before are compared.
inline void take_group_turn(const PackedCodebook& codebook, const Tags& tags, const TileTurn& now,
                            const TileTurn& before, TileScores* scores,
                            const TileScores* scores_before) {
  const auto compare = [&](int64_t first, int64_t last) {
    if (before.best) {
      keep_group_scores(scores_before, codebook.tiles.half_norms, before.panel, tags, first, last,
                        before.best, before.second);
    }
  };
  const auto nothing = [](int64_t, int64_t) {};
  const int64_t panel = now.panel * kGroupPanels;
  multiply_panel<0>(codebook, now.rows, panel, nothing);
  compare(0, kTileHeight / 2);
  multiply_panel<2>(codebook, now.rows, panel + 1, nothing);
  store_scores<0>(scores);
  compare(kTileHeight / 2, kTileHeight);
  store_scores<2>(scores + 1);
}

// Calls use(tile of rows, panel or group), so that a part of the codes stays in the cache for all
// rows.
template <class Use>
inline void for_each_turn(int64_t num_panels, int64_t panel_bytes, int64_t num_tiles,
                          int64_t tiles_at_once, const Use& use) {
  const int64_t cached = kTileCacheBytes / panel_bytes, panels_at_once = cached < 1 ? 1 : cached;
  for (int64_t first = 0; first < num_panels; first += panels_at_once) {
    const int64_t last = first + panels_at_once < num_panels ? first + panels_at_once : num_panels;
    for (int64_t tile = 0; tile < num_tiles; tile += tiles_at_once) {
      for (int64_t panel = first; panel < last; ++panel) use(tile, panel);
    }
  }
}

template <>
inline void screen_tiles<TileScreen>(const PackedCodebook& codebook, const Tags& tags,
                                     const uint32_t* rows, const float*, int64_t num_tiles,
                                     Vec* best, Vec* second) {
  const int64_t chunks = tile_chunks(codebook.dim);
  const int64_t row_words = chunks * kTileHeight * kTileDims / 2;
  const int64_t panel_bytes = chunks * 2 * kTileHeight * kTileBytes;
  const int64_t num_panels = (codebook.num_codes + kTilePanel - 1) / kTilePanel;
  for (int64_t r = 0; r < num_tiles * kTilesRows; ++r) {
    best[r] = second[r] = Vec::broadcast(INFINITY);
  }
  const Tiles configured;
  const auto turn = [&](int64_t tile, int64_t panel) {
    return TileTurn{panel, rows + tile * row_words, best + tile * kTileHeight,
                    second + tile * kTileHeight};
  };
  if (TileScreen::has_groups(codebook)) {
    const int64_t num_groups = (num_panels + kGroupPanels - 1) / kGroupPanels;
    alignas(64) TileScores scores[2][kGroupPanels];
    TileScores *now_scores = scores[0], *scores_before = scores[1];
    TileTurn before = {};
    for_each_turn(num_groups, kGroupPanels * panel_bytes, 2 * num_tiles, 1,
                  [&](int64_t tile, int64_t group) {
                    const TileTurn now = turn(tile, group);
                    take_group_turn(codebook, tags, now, before, now_scores, scores_before);
                    before = now;
                    TileScores* const freed = scores_before;
                    scores_before = now_scores;
                    now_scores = freed;
                  });
    keep_group_scores(scores_before, codebook.tiles.half_norms, before.panel, tags, 0, kTileHeight,
                      before.best, before.second);
    return;
  }
  // Their two places are the halves of a page: a load whose address agrees with that of an
  // unfinished store in the last 12 bits would wait for it.
  alignas(4096) TileScores scores[2];
  TileTurn even = {}, odd = {};
  for_each_turn(num_panels, panel_bytes, 2 * num_tiles, 2, [&](int64_t tile, int64_t panel) {
    const TileTurn even_before = even, odd_before = odd;
    even = turn(tile, panel);
    take_turn<0>(codebook, tags, even, even_before, scores);
    odd = turn(tile + 1, panel);
    take_turn<2>(codebook, tags, odd, odd_before, scores);
  });
  take_turn<0>(codebook, tags, even, even, scores);
  keep_tile_scores(scores[1], codebook.tiles.half_norms, odd.panel, tags, 0, kTileHeight, odd.best,
                   odd.second);
}
#endif

}  // namespace
}  // namespace vqvae2_fast::cpu
