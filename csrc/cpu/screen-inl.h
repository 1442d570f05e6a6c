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

// How the words of rows and codes are stored and multiplied.
struct FloatScreen {
  using Word = float;
  static constexpr int kDimsPerWord = 1;
  // Roundings of a sum of D products (scalar levels round products and sums).
  static double roundings(int64_t dim) { return static_cast<double>(dim) + 2; }
  static double code_residual(const PackedCodebook&) { return kFloatUnit; }
  static const Word* panels(const PackedCodebook& codebook) { return codebook.panels; }
  static Vec store(Vec values, Word* words) {
    values.store(words);
    return Vec::broadcast(0.0f);
  }
  static Vec add_products(Vec sum, Word z, const Word* codes) {
    return sum.add_product(Vec::broadcast(z), Vec::load(codes));
  }
};

#if defined(VQ_HAS_PAIR_PRODUCTS)
struct PairScreen {
  using Word = uint32_t;
  static constexpr int kDimsPerWord = 2;
  // Two products and sums a word, three roundings each, by truncation or not.
  static double roundings(int64_t dim) { return 4 * static_cast<double>(dim) + 8; }
  static double code_residual(const PackedCodebook& codebook) { return codebook.pair_residual; }
  static const Word* panels(const PackedCodebook& codebook) { return codebook.pair_panels; }
  static Vec store(Vec values, Word* words) {
    return store_rounded(values, reinterpret_cast<uint16_t*>(words));
  }
  static Vec add_products(Vec sum, Word z, const Word* codes) {
    return add_pair_products(sum, z, codes);
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
};

inline float norm_above(Vec squares, int64_t dim) {
  // Squares that underflow, the rounding of the sum and of the root.
  const float factor = 1.0001f + static_cast<float>(dim) * 0x1p-22f;
  return sqrtf(lane_sum(squares) + static_cast<float>(dim) * 0x1p-120f) * factor;
}

// Writes m - z (minus z', so that scores are sums) as words of row r of a tile.
template <class Screen>
inline StagedRow stage_row(const float* z, const PackedCodebook& codebook, int r,
                           typename Screen::Word* tile) {
  constexpr int64_t kStageDims = kStageWords * Screen::kDimsPerWord;
  const int64_t dim = codebook.dim;
  Vec squares = Vec::broadcast(0.0f), errors = squares;
  for (int64_t d = 0; d < dim; d += Vec::kLanes) {
    Vec values;
    if (d + Vec::kLanes <= dim) {
      values = Vec::load(codebook.center + d) - Vec::load(z + d);
    } else {
      float part[Vec::kLanes] = {};
      for (int64_t i = d; i < dim; ++i) part[i - d] = codebook.center[i] - z[i];
      values = Vec::load(part);
    }
    typename Screen::Word* words = tile + d / kStageDims * kTileRows * kStageWords +
                                   r * kStageWords + d % kStageDims / Screen::kDimsPerWord;
    const Vec error = Screen::store(values, words);
    squares = squares.add_product(values, values);
    errors = errors.add_product(error, error);
  }
  StagedRow row;
  row.norm = norm_above(squares, dim);
  row.error = Screen::kDimsPerWord == 1 ? 0 : norm_above(errors, dim);
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

// scores[r], scores[kTileRows + r]: half norms plus products with the two vectors of a panel. Kept
// out of line: constants of the caller must not take registers from the sums.
template <class Screen>
[[gnu::noinline]] void panel_scores(const typename Screen::Word* tile, int64_t words,
                                    const typename Screen::Word* panel, const float* half_norms,
                                    Vec* scores) {
  Vec low[kTileRows], high[kTileRows];
  const Vec low_norm = Vec::load(half_norms), high_norm = Vec::load(half_norms + Vec::kLanes);
#pragma GCC unroll 12
  for (int r = 0; r < kTileRows; ++r) {
    low[r] = low_norm;
    high[r] = high_norm;
  }
  for (int64_t start = 0; start < words; start += kStageWords) {
    const int64_t count = words - start < kStageWords ? words - start : kStageWords;
    for (int64_t i = 0; i < count; ++i) {
#pragma GCC unroll 12
      for (int r = 0; r < kTileRows; ++r) {
        const typename Screen::Word z = tile[r * kStageWords + i];
        low[r] = Screen::add_products(low[r], z, panel);
        high[r] = Screen::add_products(high[r], z, panel + Vec::kLanes);
      }
      panel += kPanelWidth;
    }
    tile += kTileRows * kStageWords;
  }
#pragma GCC unroll 12
  for (int r = 0; r < kTileRows; ++r) {
    scores[r] = low[r];
    scores[kTileRows + r] = high[r];
  }
}

template <class Screen>
inline void screen_panel(const typename Screen::Word* tile, int64_t words,
                         const typename Screen::Word* panel, const float* half_norms,
                         uint32_t clear, uint32_t low_tag, uint32_t high_tag, Vec* best,
                         Vec* second) {
  Vec scores[2 * kTileRows];
  panel_scores<Screen>(tile, words, panel, half_norms, scores);
#pragma GCC unroll 12
  for (int r = 0; r < kTileRows; ++r) {
    keep_two_least(scores[r], clear, low_tag, best[r], second[r]);
    keep_two_least(scores[kTileRows + r], clear, high_tag, best[r], second[r]);
  }
}

// Screens num_tiles staged tiles; best and second hold a vector for each row.
template <class Screen>
inline void screen_tiles(const PackedCodebook& codebook, const Tags& tags,
                         const typename Screen::Word* tiles, int64_t num_tiles, Vec* best,
                         Vec* second) {
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
        screen_panel<Screen>(tiles + tile * tile_words, words,
                             Screen::panels(codebook) + panel * panel_words,
                             codebook.half_norms + panel * kPanelWidth, ~tags.mask,
                             static_cast<uint32_t>(2 * panel / tags.vectors_per_tag),
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
    constant = dim * 0x1p-120 * (1 + norm + codebook.max_norm) + definition * norm * norm;
  }

  double operator()(double code_norm) const {
    return VQ_BAND_SCALE * ((quadratic * code_norm + linear) * code_norm + constant);
  }
};

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
