// `scalar_quantize` with its gradient and `sign_quantize` on the CPU, float32, on the stable ABI:
// threads share the vectors. Schemas and checks: vqvae2_fast/ops/scalar_quantize, sign_quantize.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <tuple>
#include <vector>

#include "../cpu/aligned.h"
#include "../cpu/kernels.h"
#include "maps.h"
#include "new_tensor.h"
#include "parallel.h"

namespace vqvae2_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kNumberGrain = 1 << 14;  // numbers that a thread takes at a time

// A grid with its columns, which `column_of` of ops/scalar_quantize/op.py defines.
class Grid {
 public:
  Grid(const std::vector<int64_t>& levels, bool symmetric, bool hard)
      : columns_(kColumns * (levels.size() + cpu::kColumnPadding)) {
    double codes = 1;
    uint64_t next_place = 1;
    for (const int64_t size : levels) {
      places_.push_back(next_place);
      next_place *= static_cast<uint64_t>(size);
      codes *= static_cast<double>(size);
    }
    const bool is_wide = codes > kMostExact;
    const int64_t dim = static_cast<int64_t>(levels.size()), length = dim + cpu::kColumnPadding;
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

  const cpu::ScalarGrid& get() const { return grid_; }

 private:
  static constexpr int64_t kColumns = 8;
  static constexpr double kMargin = 1e-3;
  // Whole numbers up to this are exact in float32.
  static constexpr double kMostExact = 1 << 24;
  std::vector<uint64_t> places_;
  std::vector<float> columns_;
  cpu::ScalarGrid grid_;
};

void check(const Tensor& z, const std::vector<int64_t>& levels) {
  STD_TORCH_CHECK(is_float(z) && z.dim() == 2 && z.size(1) == static_cast<int64_t>(levels.size()) &&
                      z.size(1) > 0,
                  "expected float32 z [N, d] and d levels.");
}

int64_t grain_of(int64_t dim) { return 1 + kNumberGrain / dim; }

std::tuple<Tensor, Tensor> scalar_quantize_cpu(const Tensor& z, std::vector<int64_t> levels,
                                               bool symmetric, bool hard, bool int32) {
  check(z, levels);
  const int64_t num_rows = z.size(0), dim = z.size(1);
  const Grid grid(levels, symmetric, hard);
  const Tensor rows = contiguous_form(z);
  Tensor values = new_tensor(z, {num_rows, dim});
  Tensor indices = new_tensor(z, {num_rows}, int32 ? ScalarType::Int : ScalarType::Long);
  float* const target = mutable_floats(values);
  cpu::ScalarIndices index = {};
  if (int32) {
    index.narrow = indices.mutable_data_ptr<int32_t>();
  } else {
    index.wide = indices.mutable_data_ptr<int64_t>();
  }
  parallel_for(0, num_rows, grain_of(dim), [&](int64_t first, int64_t last) {
    const auto digits = cpu::aligned<float>(cpu::kDigitRows * dim);
    cpu::kernels().scalar_quantize.round(grid.get(), floats(rows), first, last, digits.get(),
                                         target, index);
  });
  return {values, indices};
}

Tensor scalar_quantize_backward_cpu(const Tensor& dvalues, const Tensor& z,
                                    std::vector<int64_t> levels, bool symmetric, bool hard) {
  check(z, levels);
  STD_TORCH_CHECK(is_float(dvalues) && dvalues.dim() == 2 && dvalues.size(0) == z.size(0) &&
                      dvalues.size(1) == z.size(1),
                  "expected float32 dvalues [N, d].");
  const int64_t num_rows = z.size(0), dim = z.size(1);
  const Grid grid(levels, symmetric, hard);
  const Tensor rows = contiguous_form(z), above = contiguous_form(dvalues);
  Tensor dz = new_tensor(z, {num_rows, dim});
  float* const target = mutable_floats(dz);
  parallel_for(0, num_rows, grain_of(dim), [&](int64_t first, int64_t last) {
    cpu::kernels().scalar_quantize.round_backward(grid.get(), floats(above), floats(rows), first,
                                                  last, target);
  });
  return dz;
}

std::tuple<Tensor, Tensor> sign_quantize_cpu(const Tensor& z, double scale) {
  STD_TORCH_CHECK(is_float(z) && z.dim() == 2 && z.size(1) > 0 && z.size(1) < 64,
                  "expected float32 z [N, d] with d from 1 to 63.");
  const int64_t num_rows = z.size(0), dim = z.size(1);
  const Tensor rows = contiguous_form(z);
  Tensor values = new_tensor(z, {num_rows, dim});
  Tensor indices = new_tensor(z, {num_rows}, ScalarType::Long);
  float* const target = mutable_floats(values);
  int64_t* const index = indices.mutable_data_ptr<int64_t>();
  parallel_for(0, num_rows, grain_of(dim), [&](int64_t first, int64_t last) {
    cpu::kernels().scalar_quantize.signs(floats(rows), static_cast<float>(scale), dim, first, last,
                                         target, index);
  });
  return {values, indices};
}

}  // namespace
}  // namespace vqvae2_fast

STABLE_TORCH_LIBRARY_IMPL(vqvae2_fast, CPU, m) {
  m.impl("scalar_quantize", TORCH_BOX(&vqvae2_fast::scalar_quantize_cpu));
  m.impl("scalar_quantize_backward", TORCH_BOX(&vqvae2_fast::scalar_quantize_backward_cpu));
  m.impl("sign_quantize", TORCH_BOX(&vqvae2_fast::sign_quantize_cpu));
}
