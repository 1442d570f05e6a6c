// The screen of the nearest-code search: tiles of centred rows against the panels of the codebook.
// Include after a simd/ header.
//
// Per row and lane (a lane sees every kLanes-th code) the two least scores remain, the low bits of
// a score replaced by the number of the vector of codes that it came from. No N x K memory.
#pragma once

#include <math.h>

#include "exact_distance-inl.h"
#include "nearest_code.h"

namespace vqvae2_fast::cpu {
namespace {

constexpr int64_t kPanelWidth = 2 * Vec::kLanes;
constexpr int kTileRows = Vec::kTileRows;
// A staged tile is [words / kStageWords, kTileRows, kStageWords]: rows at fixed distances, so that
// the inner loop needs one pointer.
constexpr int64_t kStageWords = 64;
// Codes that stay in the second-level cache while the tiles of a block pass.
constexpr int64_t kCachedBytes = 384 << 10;
// A tag takes the place of at most this many bits of a score.
constexpr int kMaxTagBits = 10;

// How the words of rows and codes are stored and multiplied, and how sums become scores.
struct FloatScreen {
  using Word = float;
  using Sum = Vec;
  static constexpr int kDimsPerWord = 1;
  // Roundings of a sum of D products (scalar levels round products and sums).
  static double roundings(int64_t dim) { return static_cast<double>(dim) + 2; }
  static double code_residual(const PackedCodebook&) { return kFloatUnit; }
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
// Fixed point: two int16 to a word, rows and codes each in a unit of their own, exact sums in
// int32.
struct PairScreen {
  using Word = uint32_t;
  using Sum = PairSum;
  static constexpr int kDimsPerWord = 2;
  // The conversion of the sum and the addition of the half norm.
  static double roundings(int64_t) { return 3; }
  static double code_residual(const PackedCodebook& codebook) { return codebook.pair_residual; }
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
  // Units multiply one after the other: their product may underflow where the sum is large.
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

// A row after staging, upper bounds both: |z'|, and how far z' is from the exact z - m.
struct StagedRow {
  float norm, error;
  float unit;  // of its words
};

inline float norm_above(Vec squares, int64_t dim) {
  // Squares that underflow, the rounding of the sum and of the root.
  const float factor = 1.0001f + static_cast<float>(dim) * 0x1p-22f;
  return sqrtf(lane_sum(squares) + static_cast<float>(dim) * 0x1p-120f) * factor;
}

// Calls use(d, m - z of kLanes dimensions from d on, zero past the last) for all of a row.
template <class Use>
inline void for_each_centered(const float* z, const PackedCodebook& codebook, const Use& use) {
  const int64_t dim = codebook.dim;
  int64_t d = 0;
  for (; d + Vec::kLanes <= dim; d += Vec::kLanes) {
    use(d, Vec::load(codebook.center + d) - Vec::load(z + d));
  }
  if (d == dim) return;
  float part[Vec::kLanes] = {};
  for (int64_t i = d; i < dim; ++i) part[i - d] = codebook.center[i] - z[i];
  use(d, Vec::load(part));
}

// Writes m - z (minus z', so that scores are sums) as words of row r of a tile.
template <class Screen>
inline StagedRow stage_row(const float* z, const PackedCodebook& codebook, int r,
                           typename Screen::Word* tile) {
  constexpr int64_t kStageDims = kStageWords * Screen::kDimsPerWord;
  Vec squares = Vec::broadcast(0.0f), errors = squares;
  for_each_centered(z, codebook,
                    [&](int64_t, Vec values) { squares = squares.add_product(values, values); });
  StagedRow row;
  row.norm = norm_above(squares, codebook.dim);
  row.unit = Screen::unit(row.norm);
  for_each_centered(z, codebook, [&](int64_t d, Vec values) {
    typename Screen::Word* words = tile + d / kStageDims * kTileRows * kStageWords +
                                   r * kStageWords + d % kStageDims / Screen::kDimsPerWord;
    const Vec error = Screen::store(values, row.unit, words);
    errors = errors.add_product(error, error);
  });
  row.error = Screen::kDimsPerWord == 1 ? 0 : norm_above(errors, codebook.dim);
  row.error += row.norm * 0x1.01p-24f;  // the rounding of m - z
  return row;
}

// How scores are tagged: vector v of codes has tag v / vectors_per_tag.
struct Tags {
  uint32_t mask;
  int64_t vectors_per_tag;
  double rounding;  // relative change of a score

  explicit Tags(int64_t num_vectors) {
    int bits = 0;
    while (bits < kMaxTagBits && (int64_t{1} << bits) < num_vectors) ++bits;
    mask = (1u << bits) - 1;
    vectors_per_tag = (num_vectors + mask) >> bits;
    rounding = bits ? static_cast<double>(uint32_t{1} << bits) * 0x1p-23 : 0;
  }
};

// Codes of a panel: words, and what makes scores of sums of their products.
template <class Screen>
struct Panel {
  const typename Screen::Word* words;
  const float *half_norms, *units;
};

// scores[r], scores[kTileRows + r]: half norms plus products with the two vectors of a panel. Kept
// out of line: constants of the caller must not take registers from the sums.
template <class Screen>
[[gnu::noinline]] void panel_scores(const typename Screen::Word* tile, const StagedRow* rows,
                                    int64_t words, Panel<Screen> panel, Vec* scores) {
  typename Screen::Sum low[kTileRows], high[kTileRows];
  const Vec low_norms = Vec::load(panel.half_norms);
  const Vec high_norms = Vec::load(panel.half_norms + Vec::kLanes);
#pragma GCC unroll 12
  for (int r = 0; r < kTileRows; ++r) {
    low[r] = Screen::start(low_norms);
    high[r] = Screen::start(high_norms);
  }
  const typename Screen::Word* codes = panel.words;
  for (int64_t start = 0; start < words; start += kStageWords) {
    const int64_t count = words - start < kStageWords ? words - start : kStageWords;
    for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 12
      for (int r = 0; r < kTileRows; ++r) {
        const typename Screen::Word z = tile[r * kStageWords + i];
        low[r] = Screen::add_products(low[r], z, codes);
        high[r] = Screen::add_products(high[r], z, codes + Vec::kLanes);
      }
      codes += kPanelWidth;
    }
    tile += kTileRows * kStageWords;
  }
  const Vec low_units = Vec::load(panel.units), high_units = Vec::load(panel.units + Vec::kLanes);
#pragma GCC unroll 12
  for (int r = 0; r < kTileRows; ++r) {
    scores[r] = Screen::score(low[r], rows[r].unit, low_units, low_norms);
    scores[kTileRows + r] = Screen::score(high[r], rows[r].unit, high_units, high_norms);
  }
}

template <class Screen>
inline void screen_panel(const typename Screen::Word* tile, const StagedRow* rows, int64_t words,
                         Panel<Screen> panel, uint32_t clear, uint32_t low_tag, uint32_t high_tag,
                         Vec* best, Vec* second) {
  Vec scores[2 * kTileRows];
  panel_scores<Screen>(tile, rows, words, panel, scores);
#pragma GCC unroll 12
  for (int r = 0; r < kTileRows; ++r) {
    keep_two_least(scores[r], clear, low_tag, best[r], second[r]);
    keep_two_least(scores[kTileRows + r], clear, high_tag, best[r], second[r]);
  }
}

// Screens num_tiles staged tiles; best and second hold a vector for each row.
template <class Screen>
inline void screen_tiles(const PackedCodebook& codebook, const Tags& tags,
                         const typename Screen::Word* tiles, const StagedRow* rows,
                         int64_t num_tiles, Vec* best, Vec* second) {
  const int64_t words = words_of<Screen>(codebook.dim);
  const int64_t tile_words = staged_words(codebook.dim), panel_words = words * kPanelWidth;
  for (int64_t r = 0; r < num_tiles * kTileRows; ++r)
    best[r] = second[r] = Vec::broadcast(INFINITY);
  int64_t panels_at_once = kCachedBytes / (panel_words * static_cast<int64_t>(sizeof(float)));
  if (panels_at_once < 1) panels_at_once = 1;
  for (int64_t first = 0; first < codebook.num_panels; first += panels_at_once) {
    const int64_t last =
        first + panels_at_once < codebook.num_panels ? first + panels_at_once : codebook.num_panels;
    for (int64_t tile = 0; tile < num_tiles; ++tile) {
      for (int64_t panel = first; panel < last; ++panel) {
        screen_panel<Screen>(tiles + tile * tile_words, rows + tile * kTileRows, words,
                             {Screen::panels(codebook) + panel * panel_words,
                              codebook.half_norms + panel * kPanelWidth,
                              Screen::units(codebook) + panel * kPanelWidth},
                             ~tags.mask, static_cast<uint32_t>(2 * panel / tags.vectors_per_tag),
                             static_cast<uint32_t>((2 * panel + 1) / tags.vectors_per_tag),
                             best + tile * kTileRows, second + tile * kTileRows);
      }
    }
  }
}

// csrc/tests/band_test.cpp narrows the band, to see that it is needed.
#if !defined(VQ_BAND_SCALE)
#define VQ_BAND_SCALE 1.0
#endif

// |score of the screen - exact score| <= quadratic e^2 + linear e + constant for a code of norm e.
template <class Screen>
struct Band {
  double quadratic, linear, constant;

  Band(const PackedCodebook& codebook, const Tags& tags, StagedRow row) {
    const double norm = row.norm, dim = static_cast<double>(codebook.dim);
    const double relative = Screen::roundings(codebook.dim) * kFloatUnit + tags.rounding;
    // 1.05 and more stand for the second-order terms.
    // The definition's own sums: a vector far from all codes is as near to several of them.
    const double definition = (dim + 2) * 0x1p-52;
    quadratic = 1.06 * 0.5 * (relative + 2 * kFloatUnit) + definition;
    linear = 1.06 * (row.error + norm * (Screen::code_residual(codebook) + relative));
    constant = dim * 0x1p-119 * (1 + norm + codebook.max_norm) + definition * norm * norm;
  }

  double operator()(double code_norm) const {
    return VQ_BAND_SCALE * ((quadratic * code_norm + linear) * code_norm + constant);
  }
};

// As `candidate_bound` with the codebook's largest norm for the reach; infinity where that may not
// do.
template <class Screen>
inline double loose_bound(const PackedCodebook& codebook, const Band<Screen>& band, StagedRow row,
                          double best) {
  constexpr double kLimit = 0.4 * kMaxScreenedNorm;
  const double norm = row.norm, width = band(codebook.max_norm);
  const bool within = norm < kLimit && norm * norm + 2 * (best + width) < kLimit * kLimit;
  return within ? best + 2 * width : INFINITY;
}

// Scores up to this may belong to the nearest code, none above; infinity if nothing is certain.
template <class Screen>
inline double candidate_bound(const PackedCodebook& codebook, const Band<Screen>& band,
                              StagedRow row, double best) {
  const double norm = row.norm;
  // The norms of the best code found and of the winner are at most `reach`. Neither is farther
  // from z than the best code's band allows, so that codes flung far away do not widen it; each
  // step starts from a better bound than the last.
  double reach = codebook.max_norm;
  for (int step = 0; step < 8; ++step) {
    const double square = norm * norm + 2 * (best + band(reach));
    const double radius = (norm + sqrt(square > 0 ? square : 0)) * 1.0001;
    if (!(radius < kMaxScreenedNorm)) return INFINITY;
    if (radius >= reach) break;
    const bool settled = radius > 0.8 * reach;
    reach = radius;
    if (settled) break;
  }
  return best + 2 * band(reach);
}

}  // namespace
}  // namespace vqvae2_fast::cpu
