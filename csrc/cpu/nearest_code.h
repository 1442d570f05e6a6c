// Nearest-code search: the packed codebook and the problem that a kernel solves.
//
// Scores are screened in float32 on centred data, s_k = |e'_k|^2 / 2 - z'.e'_k with z' = z - m and
// e' = e - m; a row whose runner-up lies inside the rounding band is settled in float64. The band
// and its proof: vqvae2_fast/ops/nearest_code/README.md.
#pragma once

#include <stdint.h>

#include "rows.h"

namespace vqvae2_fast::cpu {

struct PackedCodebook {
  int64_t num_codes;
  int64_t dim;
  int64_t num_panels;
  const float* codes;       // [K, D] contiguous float32, the values as given
  const float* center;      // [D], m
  const float* panels;      // [num_panels, D, panel_width], e', zero in padding
  const float* half_norms;  // [num_panels * panel_width], |e'|^2 / 2, infinity in padding
  const float* norms;       // [K], |e'|
  float max_norm;
};

struct NearestCodeProblem {
  Rows z;
  const PackedCodebook* codebook;
  int64_t* indices;
  float* sqdist;
};

}  // namespace vqvae2_fast::cpu
