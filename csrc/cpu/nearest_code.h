// Nearest-code search: the packed codebook and the problem that a kernel solves.
//
// Scores are screened on centred data, s_k = |e'_k|^2 / 2 - z'.e'_k with z' = z - m and e' = e - m,
// in bfloat16 or float32; codes inside the rounding band are told apart by float32 distances, and
// what these leave open by float64. The band and its proof: vqvae2_fast/ops/nearest_code/README.md.
#pragma once

#include <stdint.h>

#include "rows.h"

namespace vqvae2_fast::cpu {

// Codes of this norm and more are not screened (their columns are empty) and rows of this norm and
// more are searched directly: below it every product and sum is far from overflow.
constexpr double kMaxScreenedNorm = 1e18;
// Score of empty columns: above any score that is screened.
constexpr float kEmptyScore = 3e38f;

// Rows for which packing a codebook costs more than searching it as it is.
constexpr int64_t kFewRows = 8;

struct PackedCodebook {
  int64_t num_codes;
  int64_t dim;
  const float* codes;  // [K, D] contiguous float32, the values as given

  // What follows is for the screen; few rows are searched without it.
  int64_t num_panels;       // of 2 * kLanes codes
  const float* center;      // [D], m
  const float* half_norms;  // [num_panels * panel_width], |e'|^2 / 2, kEmptyScore in padding
  const float* panels;      // [num_panels, D, panel_width], e', zero in padding
  // The same in bfloat16, two dimensions to a word: [num_panels, ceil(D / 2), panel_width]; or
  // nullptr where the level has no use for it.
  const uint32_t* pair_panels;
  double max_norm;       // of e' among the screened codes
  double pair_residual;  // |e' - bfloat16(e')| <= pair_residual * |e'| + what underflows
};

// Over some panels: the largest |e'| and the least that pair_residual may be.
struct PanelNorms {
  double max_norm, pair_residual;
};

// Rows in one of the input dtypes against a codebook. Outputs that are null are not computed.
struct NearestCodeProblem {
  Rows z;
  const PackedCodebook* codebook;
  int64_t* indices;
  float* sqdist;  // float64 distances in the order of d, rounded once
  void* z_q;      // [N, D] contiguous, codes in z's dtype
  // Sum of squared errors of each block of search_block_rows rows, in any order.
  double* block_errors;
};

}  // namespace vqvae2_fast::cpu
