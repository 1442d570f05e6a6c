// Nearest-code search: the packed codebook and the problem that a kernel solves.
//
// Scores are screened on centred data, s_k = |e'_k|^2 / 2 - z'.e'_k with z' = z - m and e' = e - m,
// in bytes, bfloat16, int16 fixed point or float32; codes inside the rounding band are compared by
// float32 distances, and those that these cannot separate by float64. The band and its proof:
// vqvae2_fast/ops/nearest_code/README.md.
#pragma once

#include <stdint.h>

#include "../rows.h"

namespace vqvae2_fast::cpu {

// Codes with at least this norm are not screened (their columns are empty), and rows with at least
// this norm are searched directly. Below it every product and sum is far from overflow.
constexpr double kMaxScreenedNorm = 1e18;
// Score of empty columns: above any score that is screened.
constexpr float kEmptyScore = 3e38f;

// Rows for which packing a codebook costs more than searching it as it is.
constexpr int64_t kFewRows = 8;

struct ByteBuffers;
struct ByteNorms;
struct PackedCodebook;

// How a level packs a codebook for products of bytes (byte_screen-inl.h).
struct ByteLayout {
  int64_t block;                    // codes in a block
  int64_t word_bytes, score_bytes;  // of a code
  int64_t words;                    // of a code
  float most_component, most_half;  // largest integers, of a code and of a half norm
  float most_pair;                  // of the sum of two neighbours in a code, 0 for any
  // Fills blocks first..last of a codebook whose panels and units of bytes are set.
  ByteNorms (*fill)(const PackedCodebook& codebook, int64_t first, int64_t last,
                    const ByteBuffers& out);
};

// Codes as bytes in one unit for all of them; no panels if there are none.
struct ByteCodes {
  const int8_t* panels = nullptr;    // [blocks, 2, words, block / 2, bytes of a word]
  const void* half_norms = nullptr;  // in units of `half_unit`, as Sum::Half
  const void* offsets = nullptr;     // what kByteBias adds to the sums, as Sum::Offset
  float unit = 0, half_unit = 0;
  float norm = 0;          // of a code in `unit`, at most
  float section_norm = 0;  // of the integers that one int16 of a section sums up, at most
  float residual = 0;      // |e' - its bytes|, at most
};

// The screen on tiles: bfloat16 in chunks of kTileDims dimensions, two tiles of codes to a panel,
// kGroupPanels panels to a group.
constexpr int64_t kTileDims = 32;
constexpr int64_t kTileWidth = 16;
constexpr int64_t kTilePanel = 2 * kTileWidth;
constexpr int64_t kGroupPanels = 2;
constexpr int64_t kTileGroup = kGroupPanels * kTilePanel;
constexpr int64_t kMostTileDims = 1024;
// Of many codes, the panels of a group are compared together: a lane keeps only the least of their
// scores, and a row that is not certain is compared with all codes of the lane in the group.
constexpr int64_t kFewestGroupedCodes = 2048, kMostGroupedDims = 64;

// Of short codes, most of what a tile multiplies is padding, which only groups make up for.
constexpr bool suit_tiles(int64_t num_codes, int64_t dim) {
  return dim <= kMostTileDims && (dim >= 16 || (dim >= 8 && num_codes >= kFewestGroupedCodes));
}
constexpr int64_t tile_chunks(int64_t dim) { return (dim + kTileDims - 1) / kTileDims; }
// Codes with the padding of the last group.
constexpr int64_t tiled_codes(int64_t num_codes) {
  return (num_codes + kTileGroup - 1) / kTileGroup * kTileGroup;
}

// Codes as bfloat16; no panels if there are none.
struct TileCodes {
  // [panels of whole groups, tile_chunks(D), 2, kTileDims / 2, kTileWidth, 2], zero in padding
  const uint16_t* panels = nullptr;
  const float* half_norms = nullptr;  // [codes of whole groups], kEmptyScore in padding
  double residual = 0;                // |e' - its bfloat16| / |e'|, at most, but for underflow
};

struct PackedCodebook {
  int64_t num_codes = 0;
  int64_t dim = 0;
  const float* codes = nullptr;  // [K, D] contiguous float32, the values as given

  // The rest is for the screen; a few rows are searched without it.
  int64_t num_panels = 0;         // of 2 * kLanes codes
  const float* center = nullptr;  // [D], m
  // [num_panels * panel_width], |e'|^2 / 2, kEmptyScore in padding
  const float* half_norms = nullptr;
  const float* panels = nullptr;  // [num_panels, D, panel_width], e', zero in padding
  // The same as int16 in units of each code, two dimensions to a word: [num_panels, ceil(D / 2),
  // panel_width], and the units, [num_panels * panel_width]; or nullptr if the SIMD level does not
  // use them.
  const uint32_t* pair_panels = nullptr;
  const float* pair_units = nullptr;
  double max_norm = 0;  // of e' among the screened codes
  // |e' - its int16 values| <= pair_residual * |e'| + underflow
  double pair_residual = 0;
  ByteCodes bytes = {};
  TileCodes tiles = {};
  // Whether half norms of bytes and tiles are those of the codes as they are stored, and not
  // |e'|^2 / 2. If rows are nearer to their codes than to m, their bands are narrower then.
  bool halves_of_stored = false;
};

// The unit of the int16 of a vector of at most this norm: a power of two such that the vector is
// shorter than 2^15 units, so that a sum of products stays below 2^31 by Cauchy and Schwarz.
// A vector shorter than 2^-105 counts as zero. Any norm is accepted, even NaN; what is not screened
// may overflow.
inline float pair_unit(float norm) {
  uint32_t exponent = bits_of(norm) >> 23 & 0xFFu;
  if (exponent < 22) exponent = 22;
  return float_from_bits((exponent - 14) << 23);
}

// Where the forms of a codebook are written; null for those that it does not have.
struct PanelBuffers {
  float *panels, *half_norms;
  uint32_t* pair_panels;
  float* pair_units;
  uint16_t* tile_panels;
  float* tile_half_norms;
};

// For some panels: the largest |e'|, the smallest values that the residuals may have, and the
// largest component of e' and sum of two neighbours, from an even one on. The component is infinite
// if a code is not screened.
struct PanelNorms {
  double max_norm, pair_residual, tile_residual;
  float largest_component, largest_pair;
};

// Where the bytes of a codebook are written.
struct ByteBuffers {
  int8_t* panels;
  void *half_norms, *offsets;
};

// For some blocks of bytes: the smallest values that the fields of ByteCodes may have.
struct ByteNorms {
  float norm, section_norm, residual;
};

// Rows in one of the input dtypes against a codebook. Outputs that are null are not computed.
struct NearestCodeProblem {
  Rows z;
  const PackedCodebook* codebook;
  int64_t* indices;
  float* sqdist;  // float64 distances in the order of d, rounded once
  void* z_q;      // [N, D] contiguous, codes in z's dtype
  bool z_q_past_caches;
  // Sum of squared errors of each block of rows, in any order.
  double* block_errors;
};

// dz = dz_q + scale (z - code) with the code in row n, or in row code_rows[n * code_rows_stride].
struct QuantizeGradient {
  Rows dz_q, z, code;
  const int64_t* code_rows = nullptr;
  int64_t code_rows_stride = 0;
  float scale;
  int64_t dim;
  void* dz;  // [N, D] contiguous, in z's dtype
  bool past_caches = false;
};

// A search of one SIMD level. `Problem` has a `codebook`; its other fields concern only its kernels
// and their caller. `search_codebook` in search.h calls them.
template <class Problem>
struct SearchKernels {
  // Solves all of at most kFewRows rows without packing; copies holds num_rows x D floats.
  void (*few_rows)(const Problem& problem, int64_t num_rows, float* copies);
  // Solves rows begin..end, begin a multiple of block_rows(D), in workspace(D) bytes of 64-byte
  // aligned memory.
  void (*rows)(const Problem& problem, int64_t begin, int64_t end, void* memory);
  int64_t (*workspace)(int64_t dim);
  int64_t (*block_rows)(int64_t dim);
};

}  // namespace vqvae2_fast::cpu
