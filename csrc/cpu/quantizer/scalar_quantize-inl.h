// The kernels of scalar_quantize.h: include inside a level file after its simd header.
#pragma once

#include "../simd/math-inl.h"
#include "scalar_quantize.h"

namespace vqvae2_fast::cpu::scalar_quantize {
namespace {

static_assert(Vec::kLanes <= kColumnPadding, "a vector of lanes reads past a column's constants");

// Calls use(i, lanes) for numbers i..i + lanes of `count`, and with the number's place in its row.
template <class Use>
inline void for_each_vector(int64_t dim, int64_t count, const Use& use) {
  const int64_t step = Vec::kLanes % dim;
  int64_t column = 0;
  for (int64_t i = 0; i < count; i += Vec::kLanes) {
    use(i, count - i < Vec::kLanes ? count - i : Vec::kLanes, column);
    column += step;
    if (column >= dim) column -= dim;
  }
}

template <bool kHard>
inline Vec bounded(Vec x) {
  const Vec one = Vec::broadcast(1.0f);
  if constexpr (kHard) return x.at_least(Vec::broadcast(-1.0f)).at_most(one);
  // tanh to an ulp of 1.
  const Vec e = exponential(x * Vec::broadcast(-2.0f));
  return Vec::broadcast(2.0f) / (one + e) - one;
}

// The derivative of `bounded`; tanh' = 4 e / (1 + e)^2 cancels nowhere.
template <bool kHard>
inline Vec bounded_slope(Vec x) {
  const Vec one = Vec::broadcast(1.0f), zero = Vec::broadcast(0.0f);
  if constexpr (kHard) {
    // Positive up to |x| = 1: the number after 1 is subtracted from exactly.
    const Vec inside = Vec::broadcast(1.00000011920928955f) - x.at_least(zero - x);
    return inside.where_positive(one, zero);
  }
  const Vec e = exponential(x * Vec::broadcast(-2.0f));
  const Vec share = one / (one + e);
  return Vec::broadcast(4.0f) * (e * share) * share;
}

template <bool kSymmetric, bool kHard>
inline void round_rows(const ScalarGrid& grid, const float* z, int64_t count, float* digits,
                       float* values) {
  const Vec one = Vec::broadcast(1.0f), zero = Vec::broadcast(0.0f);
  const Vec magic = Vec::broadcast(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  for_each_vector(grid.dim, count, [&](int64_t i, int64_t lanes, int64_t column) {
    const Vec x = Vec::load_first(z + i, lanes) + Vec::load(grid.shift + column);
    const Vec exact = Vec::load(grid.offset + column)
                          .add_product_fused(Vec::load(grid.half + column), bounded<kHard>(x));
    Vec number = (exact + magic) - magic;
    if constexpr (kSymmetric) number = (number - exact).where_positive(number - one, number);
    const Vec least = Vec::load(grid.least + column);
    number = number.at_least(least).at_most(Vec::load(grid.most + column));
    // A NaN becomes digit 0.
    const Vec digit = number - least;
    (digit.where_positive(digit, zero) * Vec::load(grid.place + column))
        .store_first(digits + i, lanes);
    const Vec value = number / Vec::load(grid.width + column);
    (kSymmetric ? value - one : value).store_first(values + i, lanes);
  });
}

// Sums of kDim numbers, or of dim if that is 0.
template <int64_t kDim, class Index>
inline void add_digits(const float* digits, int64_t dim, int64_t rows, Index* indices) {
  const int64_t count = kDim ? kDim : dim;
  for (int64_t r = 0; r < rows; ++r) {
    float index = digits[r * count];
    for (int64_t d = 1; d < count; ++d) index += digits[r * count + d];
    indices[r] = static_cast<int32_t>(index);
  }
}

// A loop of known length takes a third of the time.
template <class Index>
inline void write_indices(const ScalarGrid& grid, const float* digits, int64_t rows,
                          Index* indices) {
  const int64_t dim = grid.dim;
  if (grid.wide_places) {
    for (int64_t r = 0; r < rows; ++r) {
      uint64_t index = 0;
      for (int64_t d = 0; d < dim; ++d) {
        const auto digit = static_cast<int32_t>(digits[r * dim + d]);
        index += static_cast<uint64_t>(digit) * grid.wide_places[d];
      }
      indices[r] = static_cast<Index>(index);
    }
    return;
  }
  const auto add = dim == 1   ? add_digits<1, Index>
                   : dim == 2 ? add_digits<2, Index>
                   : dim == 3 ? add_digits<3, Index>
                   : dim == 4 ? add_digits<4, Index>
                   : dim == 5 ? add_digits<5, Index>
                   : dim == 6 ? add_digits<6, Index>
                              : add_digits<0, Index>;
  add(digits, dim, rows, indices);
}

template <bool kSymmetric, bool kHard>
inline void round_blocks(const ScalarGrid& grid, const float* z, int64_t first, int64_t last,
                         float* digits, float* values, const ScalarIndices& indices) {
  const int64_t dim = grid.dim;
  for (int64_t row = first; row < last; row += kDigitRows) {
    const int64_t rows = last - row < kDigitRows ? last - row : kDigitRows;
    round_rows<kSymmetric, kHard>(grid, z + row * dim, rows * dim, digits, values + row * dim);
    if (indices.narrow) {
      write_indices(grid, digits, rows, indices.narrow + row);
    } else {
      write_indices(grid, digits, rows, indices.wide + row);
    }
  }
}

inline void round(const ScalarGrid& grid, const float* z, int64_t first, int64_t last,
                  float* digits, float* values, const ScalarIndices& indices) {
  const auto blocks = grid.symmetric
                          ? (grid.hard ? round_blocks<true, true> : round_blocks<true, false>)
                          : (grid.hard ? round_blocks<false, true> : round_blocks<false, false>);
  blocks(grid, z, first, last, digits, values, indices);
}

template <bool kHard>
inline void backward_rows(const ScalarGrid& grid, const float* dvalues, const float* z,
                          int64_t count, float* dz) {
  for_each_vector(grid.dim, count, [&](int64_t i, int64_t lanes, int64_t column) {
    const Vec x = Vec::load_first(z + i, lanes) + Vec::load(grid.shift + column);
    const Vec slope = bounded_slope<kHard>(x) * Vec::load(grid.slope + column);
    (Vec::load_first(dvalues + i, lanes) * slope).store_first(dz + i, lanes);
  });
}

inline void round_backward(const ScalarGrid& grid, const float* dvalues, const float* z,
                           int64_t first, int64_t last, float* dz) {
  const int64_t at = first * grid.dim, count = (last - first) * grid.dim;
  (grid.hard ? backward_rows<true> : backward_rows<false>)(grid, dvalues + at, z + at, count,
                                                           dz + at);
}

inline void signs(const float* z, float scale, int64_t dim, int64_t first, int64_t last,
                  float* values, int64_t* indices) {
  const Vec positive = Vec::broadcast(scale), negative = Vec::broadcast(-scale);
  for (int64_t row = first; row < last; row += kDigitRows) {
    const int64_t rows = last - row < kDigitRows ? last - row : kDigitRows;
    const float* const numbers = z + row * dim;
    for_each_vector(dim, rows * dim, [&](int64_t i, int64_t lanes, int64_t) {
      Vec::load_first(numbers + i, lanes)
          .where_positive(positive, negative)
          .store_first(values + row * dim + i, lanes);
    });
    for (int64_t r = 0; r < rows; ++r) {
      int64_t index = 0;
      for (int64_t d = 0; d < dim; ++d) index = 2 * index + (numbers[r * dim + d] > 0);
      indices[row + r] = index;
    }
  }
}

constexpr ScalarQuantizeKernels kKernels = {
    .round = round, .round_backward = round_backward, .signs = signs};

}  // namespace
}  // namespace vqvae2_fast::cpu::scalar_quantize
