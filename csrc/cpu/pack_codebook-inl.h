// Fills the panels of a packed codebook: include after a simd/ header, inside a level file.
#pragma once

#include <math.h>

#include "nearest_code.h"
#include "screen-inl.h"

namespace vqvae2_fast::cpu {
namespace {

// Nearest even; a denormal result is zero, as the products take it.
inline uint16_t pair_rounded(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>((rounded & 0x7F80u) ? rounded : 0);
}

// Panels first..last of a codebook whose codes and center are there.
inline PanelNorms fill_panels(const PackedCodebook& codebook, int64_t first, int64_t last,
                              float* panels, uint32_t* pair_panels, float* half_norms) {
  constexpr int64_t kPart = 64;
  const int64_t dim = codebook.dim, words = (dim + 1) / 2;
  // What underflows in rounding to bfloat16, of a whole code.
  const double underflow = sqrt(static_cast<double>(dim)) * 0x1p-126;
  PanelNorms norms = {0, 0};
  for (int64_t k = first * kPanelWidth; k < last * kPanelWidth; ++k) {
    float* const column = panels + k / kPanelWidth * dim * kPanelWidth + k % kPanelWidth;
    uint16_t* const pair_column =
        pair_panels ? reinterpret_cast<uint16_t*>(
                          pair_panels + k / kPanelWidth * words * kPanelWidth + k % kPanelWidth)
                    : nullptr;
    const bool inside = k < codebook.num_codes;
    double square = 0, residual = 0;
    for (int64_t start = 0; start < dim && inside; start += kPart) {
      const int64_t count = dim - start < kPart ? dim - start : kPart;
      const float* code = codebook.codes + k * dim + start;
      float centered[kPart];
      uint16_t rounded[kPart];
      double squares[8] = {}, residuals[8] = {};
      for (int64_t i = 0; i < count; ++i) centered[i] = code[i] - codebook.center[start + i];
      for (int64_t i = 0; i < count; ++i) rounded[i] = pair_rounded(centered[i]);
      for (int64_t i = 0; i < count; ++i) {
        const double exact =
            static_cast<double>(code[i]) - static_cast<double>(codebook.center[start + i]);
        const double error =
            exact - static_cast<double>(float_from_bits(static_cast<uint32_t>(rounded[i]) << 16));
        squares[i % 8] += exact * exact;
        residuals[i % 8] += error * error;
      }
      for (int i = 0; i < 8; ++i) {
        square += squares[i];
        residual += residuals[i];
      }
      for (int64_t i = 0; i < count; ++i) column[(start + i) * kPanelWidth] = centered[i];
      if (pair_column) {
        for (int64_t i = 0; i < count; ++i) {
          const int64_t d = start + i;
          pair_column[d / 2 * 2 * kPanelWidth + d % 2] = rounded[i];
        }
      }
    }
    const double norm = sqrt(square);
    if (inside && norm < kMaxScreenedNorm) {
      half_norms[k] = static_cast<float>(0.5 * square);
      if (norm > norms.max_norm) norms.max_norm = norm;
      const double relative = norm > 0 ? (sqrt(residual) - underflow) / norm : 0;
      if (relative > norms.pair_residual) norms.pair_residual = relative;
      if (pair_column && dim % 2) pair_column[(words - 1) * 2 * kPanelWidth + 1] = 0;
      continue;
    }
    // No code, or none that can be screened: a column that never wins.
    half_norms[k] = kEmptyScore;
    for (int64_t d = 0; d < dim; ++d) column[d * kPanelWidth] = 0;
    for (int64_t d = 0; pair_column && d < 2 * words; ++d) {
      pair_column[d / 2 * 2 * kPanelWidth + d % 2] = 0;
    }
  }
  return norms;
}

}  // namespace
}  // namespace vqvae2_fast::cpu
