// The constants of a grid of `scalar_quantize`, as its kernels read them.
#pragma once

#include <stdint.h>

#include <cmath>
#include <vector>

#include "scalar_quantize.h"

namespace vqvae2_fast::cpu {

// A grid with its columns, which `column_of` of ops/scalar_quantize/op.py defines.
class ScalarGridStorage {
 public:
  ScalarGridStorage(const std::vector<int64_t>& levels, bool symmetric, bool hard)
      : columns_(kColumns * (levels.size() + kColumnPadding)) {
    double codes = 1;
    uint64_t next_place = 1;
    for (const int64_t size : levels) {
      places_.push_back(next_place);
      next_place *= static_cast<uint64_t>(size);
      codes *= static_cast<double>(size);
    }
    const bool is_wide = codes > kMostExact;
    const int64_t dim = static_cast<int64_t>(levels.size()), length = dim + kColumnPadding;
    float* const columns = columns_.data();
    for (int64_t d = 0; d < length; ++d) {
      const auto number = static_cast<size_t>(d % dim);
      const double place = is_wide ? 1 : static_cast<double>(places_[number]);
      const int64_t size = levels[number], middle = size / 2;
      const double steps = static_cast<double>(size - 1), half = steps * (1 + kMargin) / 2;
      const double offset = size % 2 ? 0.0 : 0.5;
      const double paper[kColumns] = {hard ? offset / half : std::atanh(offset / half),
                                      half,
                                      -offset,
                                      static_cast<double>(-middle),
                                      static_cast<double>(size - 1 - middle),
                                      static_cast<double>(middle),
                                      half / static_cast<double>(middle),
                                      place};
      const double even[kColumns] = {0, steps / 2, steps / 2 + 0.5, 0, steps, steps / 2, 1, place};
      for (int64_t c = 0; c < kColumns; ++c) {
        columns[c * length + d] = static_cast<float>((symmetric ? even : paper)[c]);
      }
    }
    grid_ = {.dim = dim,
             .symmetric = symmetric,
             .hard = hard,
             .shift = columns,
             .half = columns + length,
             .offset = columns + 2 * length,
             .least = columns + 3 * length,
             .most = columns + 4 * length,
             .width = columns + 5 * length,
             .slope = columns + 6 * length,
             .place = columns + 7 * length,
             .wide_places = is_wide ? places_.data() : nullptr};
  }

  const ScalarGrid& get() const { return grid_; }

 private:
  static constexpr int64_t kColumns = 8;
  static constexpr double kMargin = 1e-3;
  // Whole numbers up to this are exact in float32.
  static constexpr double kMostExact = 1 << 24;
  std::vector<uint64_t> places_;
  std::vector<float> columns_;
  ScalarGrid grid_;
};

}  // namespace vqvae2_fast::cpu
