// The screen of the nearest-code search: tiles of centred rows against the panels of the codebook.
// Include after a simd/ header.
//
// For each row and lane (a lane sees every kLanes-th code) the two smallest scores remain; the low
// bits of a score are replaced by the number of the vector of codes that it came from. No N x K
// memory is used.
#pragma once

#include <math.h>

#include "exact_distance-inl.h"
#include "nearest_code.h"

namespace vqvae2_fast::cpu {
namespace {

constexpr int64_t kPanelWidth = 2 * Vec::kLanes;
constexpr int kTileRows = Vec::kTileRows;
// Rows are searched in blocks of at most this many tiles.
constexpr int64_t kMaxBlockTiles = 16;
// A staged tile is [words / kStageWords, kTileRows, kStageWords]. Its rows are at fixed distances,
// so that the inner loop needs only one pointer.
constexpr int64_t kStageWords = 64;
// Codes that stay in the second-level cache during the tiles of a block.
constexpr int64_t kCachedBytes = 384 << 10;
// A tag takes the place of at most this many bits of a score.
constexpr int kMaxTagBits = 10;

// How the words of rows and codes are stored and multiplied, and how sums become scores.
struct FloatScreen {
  static constexpr int64_t kTileRows = Vec::kTileRows;
  using Word = float;
  using Sum = Vec;
  static constexpr int kDimsPerWord = 1;
  // Roundings of a sum of D products (scalar levels round products and sums).
  static double roundings(int64_t dim) { return static_cast<double>(dim) + 2; }
  static int tag_shift(const PackedCodebook&) { return 0; }
  static double code_residual(const PackedCodebook&) { return kFloatUnit; }
  static bool halves_of_stored(const PackedCodebook&) { return false; }
  static const Word* panels(const PackedCodebook& codebook) { return codebook.panels; }
  static const float* units(const PackedCodebook& codebook) { return codebook.half_norms; }
  static float unit(float) { return 1; }
  static Vec store(Vec values, float, Word* words) {
    values.store(words);
    return Vec::broadcast(0.0f);
  }
  static Sum start(Vec half_norms) { return half_norms; }
  static Sum add_products(Sum sum, Word z, const Word* codes) {
    return sum.add_product(Vec::broadcast(z), Vec::load(codes));
  }
  static Vec score(Sum sum, float, Vec, Vec) { return sum; }
};

#if defined(VQ_HAS_PAIR_PRODUCTS)
// Fixed point: two int16 per word, each row and code in its own unit, exact sums in int32.
struct PairScreen {
  static constexpr int64_t kTileRows = Vec::kTileRows;
  using Word = uint32_t;
  using Sum = PairSum;
  static constexpr int kDimsPerWord = 2;
  // The conversion of the sum and the addition of the half norm.
  static double roundings(int64_t) { return 3; }
  static int tag_shift(const PackedCodebook&) { return 0; }
  static double code_residual(const PackedCodebook& codebook) { return codebook.pair_residual; }
  static bool halves_of_stored(const PackedCodebook&) { return false; }
  static const Word* panels(const PackedCodebook& codebook) { return codebook.pair_panels; }
  static const float* units(const PackedCodebook& codebook) { return codebook.pair_units; }
  static float unit(float norm) { return pair_unit(norm); }
  // Returns what rounding took away, exactly: units are powers of two.
  static Vec store(Vec values, float unit, Word* words) {
    const Vec integers =
        store_rounded(values * Vec::broadcast(1 / unit), reinterpret_cast<int16_t*>(words));
    return values - integers * Vec::broadcast(unit);
  }
  static Sum start(Vec) { return PairSum::zero(); }
  static Sum add_products(Sum sum, Word z, const Word* codes) { return sum.add_products(z, codes); }
  // The units are multiplied one after the other, because their product may underflow where the sum
  // is large.
  static Vec score(Sum sum, float unit, Vec code_units, Vec half_norms) {
    const Vec scaled = sum.to_float() * Vec::broadcast(unit);
    return half_norms.add_product(scaled, code_units);
  }
};
#endif

template <class Screen>
inline int64_t words_of(int64_t dim) {
  return (dim + Screen::kDimsPerWord - 1) / Screen::kDimsPerWord;
}

// Words of a staged tile.
inline int64_t staged_words(int64_t dim) {
  return (dim + kStageWords - 1) / kStageWords * kStageWords * kTileRows;
}

// What staging computes for rows: upper bounds of |z'| and of the error of z', and the units of
// their words.
struct StagedRows {
  float *norms, *errors, *units;
};

// Calls use(d, m - z of kLanes dimensions from d on, zero past the last) for all of a row.
template <class Use>
inline void for_each_centered(const float* z, const PackedCodebook& codebook, const Use& use) {
  const int64_t dim = codebook.dim;
  int64_t d = 0;
  for (; d + Vec::kLanes <= dim; d += Vec::kLanes) {
    use(d, Vec::load(codebook.center + d) - Vec::load(z + d));
  }
  if (d == dim) return;
  use(d, Vec::load_first(codebook.center + d, dim - d) - Vec::load_first(z + d, dim - d));
}

// An upper bound of a length whose square was summed in float32: squares that underflow, the
// rounding of the sum and of the root.
inline float norm_above(float square, int64_t dim) {
  const float factor = 1.0001f + static_cast<float>(dim) * 0x1p-22f;
  return sqrtf(square + static_cast<float>(dim) * 0x1p-120f) * factor;
}

// The same for an array, which holds whole vectors.
inline void squares_to_norms(float* squares, int64_t count, int64_t dim) {
  const Vec factor = Vec::broadcast(1.0001f + static_cast<float>(dim) * 0x1p-22f);
  const Vec underflow = Vec::broadcast(static_cast<float>(dim) * 0x1p-120f);
  for (int64_t i = 0; i < count; i += Vec::kLanes) {
    ((Vec::load(squares + i) + underflow).square_root() * factor).store(squares + i);
  }
}

// Adds the rounding of m - z to the errors.
inline void add_centering(StagedRows staged, int64_t count) {
  for (int64_t i = 0; i < count; i += Vec::kLanes) {
    Vec::load(staged.errors + i)
        .add_product(Vec::load(staged.norms + i), Vec::broadcast(0x1.01p-24f))
        .store(staged.errors + i);
  }
}

// Writes m - z (minus z', so that scores are sums) of the rows that a list names as words of tiles.
// It makes passes over all rows, so that the sums of the rows and their roots, which are chains of
// dependent instructions, run in parallel.
template <class Screen>
inline void stage_rows(const PackedCodebook& codebook, const float* const* rows,
                       const int64_t* list, int64_t count, typename Screen::Word* tiles,
                       StagedRows staged) {
  constexpr int64_t kStageDims = kStageWords * Screen::kDimsPerWord;
  const int64_t dim = codebook.dim, tile_words = staged_words(dim);
  for (int64_t i = 0; i < count; ++i) {
    Vec squares = Vec::broadcast(0.0f);
    for_each_centered(rows[list[i]], codebook,
                      [&](int64_t, Vec values) { squares = squares.add_product(values, values); });
    staged.norms[i] = lane_sum(squares);
  }
  squares_to_norms(staged.norms, count, dim);
  for (int64_t i = 0; i < count; ++i) staged.units[i] = Screen::unit(staged.norms[i]);
  for (int64_t i = 0; i < count; ++i) {
    typename Screen::Word* const tile =
        tiles + i / kTileRows * tile_words + i % kTileRows * kStageWords;
    Vec errors = Vec::broadcast(0.0f);
    for_each_centered(rows[list[i]], codebook, [&](int64_t d, Vec values) {
      const Vec error = Screen::store(
          values, staged.units[i],
          tile + d / kStageDims * kTileRows * kStageWords + d % kStageDims / Screen::kDimsPerWord);
      errors = errors.add_product(error, error);
    });
    staged.errors[i] = Screen::kDimsPerWord == 1 ? 0 : lane_sum(errors);
  }
  if (Screen::kDimsPerWord > 1) squares_to_norms(staged.errors, count, dim);
  add_centering(staged, count);
}

// How scores are tagged: vector v of codes has tag v >> shift.
struct Tags {
  uint32_t mask;
  int shift;
  double rounding;  // relative change of a score

  Tags(int64_t num_vectors, int least_shift) {
    int bits = 0;
    while (bits < kMaxTagBits && (int64_t{1} << (bits + least_shift)) < num_vectors) ++bits;
    mask = (1u << bits) - 1;
    shift = least_shift;
    while (((num_vectors - 1) >> shift) > mask) ++shift;
    rounding = bits ? static_cast<double>(uint32_t{1} << bits) * 0x1p-23 : 0;
  }
};

// Panels first..last against a tile: half norms plus products with the two vectors of a panel are
// summed in registers and update the two smallest of each row. This is not inlined, because
// constants of the caller must not take registers from the sums.
template <class Screen>
[[gnu::noinline]] void screen_tile(const PackedCodebook& codebook, Tags tags, int64_t first,
                                   int64_t last, const typename Screen::Word* tile,
                                   const float* row_units, Vec* best, Vec* second) {
  const int64_t words = words_of<Screen>(codebook.dim);
  const typename Screen::Word* codes = Screen::panels(codebook) + first * words * kPanelWidth;
  for (int64_t panel = first; panel < last; ++panel) {
    const float* const half_norms = codebook.half_norms + panel * kPanelWidth;
    const float* const units = Screen::units(codebook) + panel * kPanelWidth;
    typename Screen::Sum low[kTileRows], high[kTileRows];
#pragma GCC unroll 12
    for (int r = 0; r < kTileRows; ++r) {
      low[r] = Screen::start(Vec::load(half_norms));
      high[r] = Screen::start(Vec::load(half_norms + Vec::kLanes));
    }
    const typename Screen::Word* rows = tile;
    // At least once: with loops that may be empty, GCC 12 also stores all sums in each pass.
    int64_t start = 0;
    do {
      const int64_t count = words - start < kStageWords ? words - start : kStageWords;
      int64_t i = 0;
      do {
#pragma GCC unroll 12
        for (int r = 0; r < kTileRows; ++r) {
          const typename Screen::Word z = rows[r * kStageWords + i];
          low[r] = Screen::add_products(low[r], z, codes);
          high[r] = Screen::add_products(high[r], z, codes + Vec::kLanes);
        }
        codes += kPanelWidth;
      } while (++i < count);
      rows += kTileRows * kStageWords;
    } while ((start += kStageWords) < words);
    const uint32_t low_tag = static_cast<uint32_t>((2 * panel) >> tags.shift);
    const uint32_t high_tag = static_cast<uint32_t>((2 * panel + 1) >> tags.shift);
#pragma GCC unroll 12
    for (int r = 0; r < kTileRows; ++r) {
      // Copies: a compiler must assume that a store to `best` changes what is read after it.
      Vec least = best[r], next = second[r];
      const Vec low_score =
          Screen::score(low[r], row_units[r], Vec::load(units), Vec::load(half_norms));
      keep_two_least(low_score, ~tags.mask, low_tag, least, next);
      const Vec high_score = Screen::score(high[r], row_units[r], Vec::load(units + Vec::kLanes),
                                           Vec::load(half_norms + Vec::kLanes));
      keep_two_least(high_score, ~tags.mask, high_tag, least, next);
      best[r] = least;
      second[r] = next;
    }
  }
}

// Screens num_tiles staged tiles; best and second hold a vector for each row.
template <class Screen>
inline void screen_tiles(const PackedCodebook& codebook, const Tags& tags,
                         const typename Screen::Word* tiles, const float* row_units,
                         int64_t num_tiles, Vec* best, Vec* second) {
  const int64_t panel_bytes = words_of<Screen>(codebook.dim) * kPanelWidth * 4;
  for (int64_t r = 0; r < num_tiles * kTileRows; ++r)
    best[r] = second[r] = Vec::broadcast(INFINITY);
  int64_t panels_at_once = kCachedBytes / panel_bytes;
  if (panels_at_once < 1) panels_at_once = 1;
  for (int64_t first = 0; first < codebook.num_panels; first += panels_at_once) {
    const int64_t last =
        first + panels_at_once < codebook.num_panels ? first + panels_at_once : codebook.num_panels;
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      const int64_t row = tile * kTileRows;
      screen_tile<Screen>(codebook, tags, first, last, tiles + tile * staged_words(codebook.dim),
                          row_units + row, best + row, second + row);
    }
  }
}

}  // namespace
}  // namespace vqvae2_fast::cpu
