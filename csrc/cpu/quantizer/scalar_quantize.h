// Quantisation of each number of a vector by itself, in float32: rounding to a grid with its
// gradient (`scalar_quantize`), and signs (`sign_quantize`). One pass over memory each.
//
// Sizes: rows are vectors, contiguous; dim numbers of a vector.
#pragma once

#include <stdint.h>

namespace vqvae2_fast::cpu {

// Entries that follow the dim constants of a column: the first ones again, so that a vector of
// lanes can start at any number. At least the lanes of every SIMD level.
constexpr int64_t kColumnPadding = 16;
// Rows whose digits are held at a time.
constexpr int64_t kDigitRows = 64;

// How numbers are bounded and rounded: number = round(half * bounded(z + shift) + offset) within
// least..most, or its floor if the grid is symmetric; value = number / width, then less 1.
struct ScalarGrid {
  int64_t dim = 0;
  bool symmetric = false, hard = false;
  // [dim + kColumnPadding] each; slope is what the bound's derivative is multiplied by.
  const float *shift = nullptr, *half = nullptr, *offset = nullptr, *least = nullptr,
              *most = nullptr, *width = nullptr, *slope = nullptr, *place = nullptr;
  // [dim], if the places are too large for exact sums in float32; those of `place` are then 1.
  const uint64_t* wide_places = nullptr;
};

// Where indices are written: one of the two.
struct ScalarIndices {
  int64_t* wide = nullptr;
  int32_t* narrow = nullptr;
};

struct ScalarQuantizeKernels {
  // Of rows first..last; digits is memory for kDigitRows * dim numbers.
  void (*round)(const ScalarGrid& grid, const float* z, int64_t first, int64_t last, float* digits,
                float* values, const ScalarIndices& indices);
  void (*round_backward)(const ScalarGrid& grid, const float* dvalues, const float* z,
                         int64_t first, int64_t last, float* dz);
  // scale where z > 0, else -scale; the first number is the highest bit of the index.
  void (*signs)(const float* z, float scale, int64_t dim, int64_t first, int64_t last,
                float* values, int64_t* indices);
};

}  // namespace vqvae2_fast::cpu
