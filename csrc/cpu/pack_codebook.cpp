#include "pack_codebook.h"

#include <cmath>
#include <limits>

namespace vqvae2_fast::cpu {

PackedCodebookStorage pack_codebook(const Rows& codebook, int64_t num_codes, int64_t dim,
                                    int64_t panel_width) {
  PackedCodebookStorage packed;
  const bool as_is =
      codebook.dtype == Dtype::kFloat32 && codebook.stride_col == 1 && codebook.stride_row == dim;
  if (!as_is) {
    packed.codes.resize(num_codes * dim);
    for (int64_t k = 0; k < num_codes; ++k) {
      for (int64_t d = 0; d < dim; ++d) {
        packed.codes[k * dim + d] = load_element(
            codebook.data, k * codebook.stride_row + d * codebook.stride_col, codebook.dtype);
      }
    }
  }
  const float* codes = as_is ? static_cast<const float*>(codebook.data) : packed.codes.data();

  std::vector<double> mean(dim, 0.0);
  for (int64_t k = 0; k < num_codes; ++k) {
    for (int64_t d = 0; d < dim; ++d) mean[d] += codes[k * dim + d];
  }
  packed.center.resize(dim);
  bool center_finite = true;
  for (int64_t d = 0; d < dim; ++d) {
    packed.center[d] = static_cast<float>(mean[d] / static_cast<double>(num_codes));
    center_finite = center_finite && std::isfinite(packed.center[d]);
  }
  // The centre only tightens the band, any value is right: NaN in one code must not reach the rest.
  if (!center_finite) packed.center.assign(dim, 0.0f);

  const int64_t num_panels = (num_codes + panel_width - 1) / panel_width;
  packed.panels.assign(num_panels * dim * panel_width, 0.0f);
  packed.half_norms.assign(num_panels * panel_width, std::numeric_limits<float>::infinity());
  packed.norms.resize(num_codes);
  float max_norm = 0;
  for (int64_t k = 0; k < num_codes; ++k) {
    float* column = packed.panels.data() + k / panel_width * dim * panel_width + k % panel_width;
    double square = 0;
    for (int64_t d = 0; d < dim; ++d) {
      const float centered = codes[k * dim + d] - packed.center[d];
      column[d * panel_width] = centered;
      square += static_cast<double>(centered) * static_cast<double>(centered);
    }
    packed.half_norms[k] = static_cast<float>(0.5 * square);
    packed.norms[k] = static_cast<float>(std::sqrt(square));
    if (packed.norms[k] > max_norm) max_norm = packed.norms[k];
  }
  packed.view = {num_codes,
                 dim,
                 num_panels,
                 codes,
                 packed.center.data(),
                 packed.panels.data(),
                 packed.half_norms.data(),
                 packed.norms.data(),
                 max_norm};
  return packed;
}

}  // namespace vqvae2_fast::cpu
