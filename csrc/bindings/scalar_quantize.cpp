// `scalar_quantize` with its gradient and `sign_quantize` on the CPU, float32, on the stable ABI:
// threads share the vectors. Schemas and checks: vqvae2_fast/ops/scalar_quantize, sign_quantize.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

#include "../cpu/aligned.h"
#include "../cpu/kernels.h"
#include "../cpu/quantizer/scalar_grid.h"
#include "maps.h"
#include "new_tensor.h"
#include "parallel.h"

namespace vqvae2_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kNumberGrain = 1 << 14;  // numbers that a thread takes at a time

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
  const cpu::ScalarGridStorage grid(levels, symmetric, hard);
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
  const cpu::ScalarGridStorage grid(levels, symmetric, hard);
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
