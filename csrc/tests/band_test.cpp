// Narrows the band of the screen until the search goes wrong. At full width it must not go wrong,
// and it must go wrong well before nothing is left of the band, or the band would be a guess.
// Compiled once per SIMD level: -DVQ_TEST_LEVEL='"../cpu/simd/avx2.h"'. .ci/sanitizers builds and
// runs it.
#include <stdio.h>

namespace {
double band_scale = 1;
}
#define VQ_BAND_SCALE band_scale
#define VQ_ALL_CANDIDATES  // with so few codes most rows would be left to the next screen

#include VQ_TEST_LEVEL

#include "../cpu/aligned.h"
#include "../cpu/amx.h"
#include "../cpu/quantizer/nearest_code-inl.h"
#include "../cpu/quantizer/pack_codebook-inl.h"
#include "../cpu/quantizer/pack_codebook.cpp"  // for pack_bytes
#include "search_data.h"

namespace {

using namespace vqvae2_fast::cpu;

// The screen that rows pass first, of those that the level has.
enum class First { kPairs, kBytes, kTiles };

int64_t wrong_picks(const search_data::Set& set, First screen, bool halves_of_stored) {
  const int64_t panels = (set.num_codes + kPanelWidth - 1) / kPanelWidth, dim = set.dim;
  const int64_t tiled = tiled_codes(set.num_codes);
  const auto half_norms = aligned<float>(panels * kPanelWidth);
  const auto floats = aligned<float>(panels * kPanelWidth * dim);
  const auto units = aligned<float>(panels * kPanelWidth);
  const auto pairs = aligned<uint32_t>(panels * kPanelWidth * (dim + 1) / 2 + kPanelWidth);
  const auto tiles = aligned<uint16_t>(tiled * tile_chunks(dim) * kTileDims);
  memset(tiles.get(), 0, tiled * tile_chunks(dim) * kTileDims * sizeof(uint16_t));
  const auto tile_half_norms = aligned<float>(tiled);
  std::fill_n(tile_half_norms.get(), tiled, kEmptyScore);
  const search_data::Floats center(dim, set.is_centered ? 0.0f : set.codes[0]);
  PackedCodebookStorage packed;
  PackedCodebook& codebook = packed.view;
  codebook = {.num_codes = set.num_codes,
              .dim = dim,
              .codes = set.codes.data(),
              .num_panels = panels,
              .center = center.data(),
              .half_norms = half_norms.get(),
              .panels = floats.get(),
              .pair_panels = pairs.get(),
              .pair_units = units.get(),
              .halves_of_stored = halves_of_stored};
  const PanelNorms norms =
      fill_panels(codebook, 0, panels,
                  {.panels = floats.get(),
                   .half_norms = half_norms.get(),
                   .pair_panels = pairs.get(),
                   .pair_units = units.get(),
                   .tile_panels = screen == First::kTiles ? tiles.get() : nullptr,
                   .tile_half_norms = tile_half_norms.get()});
  codebook.max_norm = norms.max_norm;
  codebook.pair_residual = norms.pair_residual;
  codebook.tiles = {.panels = screen == First::kTiles ? tiles.get() : nullptr,
                    .half_norms = tile_half_norms.get(),
                    .residual = norms.tile_residual};
#if defined(VQ_HAS_BYTE_PRODUCTS)
  if (screen == First::kBytes) {
    const ByteLayout layout =
        with_byte_sums(dim, [dim](auto sum) { return byte_layout_of<decltype(sum)>(dim); });
    pack_bytes(packed, norms.largest_component, norms.largest_pair, layout,
               [](int64_t count, const auto& part) { part(0, count); });
  }
#endif
  std::vector<int64_t> indices(set.num_rows);
  const auto memory = aligned<char>(Workspace::bytes(dim));
  NearestCodeProblem problem = {};
  problem.z = {set.z.data(), dim, 1, Dtype::kFloat32};
  problem.codebook = &codebook;
  problem.indices = indices.data();
  search_rows(problem, 0, set.num_rows, memory.get());
  int64_t wrong = 0;
  for (int64_t i = 0; i < set.num_rows; ++i) wrong += indices[i] != search_data::nearest(set, i);
  return wrong;
}

bool breaks_in_time(const std::vector<search_data::Set>& sets, First screen,
                    bool halves_of_stored = false) {
  double broken_at = 0;
  for (const double scale :
       {4.0, 1.0, 0.95, 0.7, 0.5, 0.35, 0.25, 0.18, 0.12, 0.06, 0.03, 0.01, 0.0}) {
    band_scale = scale;
    int64_t wrong = 0;
    for (const auto& set : sets) wrong += wrong_picks(set, screen, halves_of_stored);
    printf("band x %.2f: %lld wrong picks\n", scale, static_cast<long long>(wrong));
    if (wrong && !broken_at) broken_at = scale > 0 ? scale : 1e-9;
  }
  const bool good = broken_at < 1 && broken_at >= 0.01;
  printf("%s%s%s: wrong first at %.2f of the band\n", good ? "passed" : "FAILED",
         screen == First::kBytes   ? " with bytes"
         : screen == First::kTiles ? " with tiles"
                                   : "",
         halves_of_stored ? " and the half norms of stored codes" : "", broken_at);
  return good;
}

}  // namespace

int main() {
  has_amx();  // asks for the tiles, if the level uses them
  std::mt19937 random(2);
  std::vector<search_data::Set> sets;
  for (const int64_t dim : {2, 16, 64}) {
    sets.push_back(search_data::midpoints(random, 4000, 96, dim, 0));
    sets.push_back(search_data::aligned_roundings(random, 4000, 96, dim));
    sets.push_back(search_data::close_codes(random, 4000, 96, dim));
    sets.push_back(search_data::opposite_roundings(random, 500, dim));
  }
  bool good = breaks_in_time(sets, First::kPairs);
#if defined(VQ_HAS_TILES)
  for (const bool stored : {false, true}) {
    good = breaks_in_time(sets, First::kTiles, stored) && good;
  }
  sets.clear();
  for (const int64_t dim :
       {int64_t{2}, int64_t{16}, kMostGroupedDims}) {  // the last group has one panel
    const int64_t num_codes = kFewestGroupedCodes + 1;
    sets.push_back(search_data::midpoints(random, 500, num_codes, dim, 0));
    sets.push_back(search_data::aligned_roundings(random, 500, num_codes, dim));
    sets.push_back(search_data::close_codes(random, 500, num_codes, dim));
  }
  for (const bool stored : {false, true}) {
    good = breaks_in_time(sets, First::kTiles, stored) && good;
  }
#endif
#if defined(VQ_HAS_BYTE_PRODUCTS)
  // Sums of few and of many dimensions are of different types at some levels.
  for (const std::vector<int64_t>& dims :
       {std::vector<int64_t>{1, 2, 16, 23, 64}, std::vector<int64_t>{65, 131, 301, 512}}) {
    sets.clear();
    for (const int64_t dim : dims) {
      sets.push_back(search_data::midpoints(random, 2000, 333, dim, 0));
      sets.push_back(search_data::aligned_roundings(random, 500, 333, dim));
      sets.push_back(search_data::close_codes(random, 2000, 333, dim));
      sets.push_back(search_data::one_word(random, 500, 333, dim));
    }
    for (const bool stored : {false, true}) {
      good = breaks_in_time(sets, First::kBytes, stored) && good;
    }
  }
#endif
  return !good;
}
