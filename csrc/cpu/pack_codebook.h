// Builds a PackedCodebook: float32 copy where needed, centring, panels, norms.
#pragma once

#include <vector>

#include "nearest_code.h"

namespace vqvae2_fast::cpu {

// Owns the memory that `view` points into; a contiguous float32 codebook is not copied and must
// outlive this.
struct PackedCodebookStorage {
  std::vector<float> codes, center, panels, half_norms, norms;
  PackedCodebook view;
};

PackedCodebookStorage pack_codebook(const Rows& codebook, int64_t num_codes, int64_t dim,
                                    int64_t panel_width);

}  // namespace vqvae2_fast::cpu
