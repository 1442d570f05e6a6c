// Residual quantisation on the CPU, on the stable ABI. Schemas:
// vqvae2_fast/ops/residual_nearest_code, vqvae2_fast/ops/residual_code_statistics.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

#include "../cpu/kernels.h"
#include "../cpu/quantizer/residual_statistics.h"
#include "../cpu/quantizer/search.h"
#include "new_tensor.h"
#include "parallel.h"
#include "rows.h"

namespace vqvae2_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Elements that a thread takes at a time: enough to pay for waking it.
constexpr int64_t kElementGrain = 1 << 15;

cpu::Codebooks codebooks_of(const Tensor& codebooks) {
  return {.first = {codebooks.const_data_ptr(), codebooks.stride(1), codebooks.stride(2),
                    dtype_of(codebooks, "codebooks")},
          .stride = codebooks.stride(0),
          .num_quantizers = codebooks.size(0),
          .num_codes = codebooks.size(1),
          .dim = codebooks.size(2)};
}

bool fits(const Tensor& z, const Tensor& codebooks) {
  return z.dim() == 2 && codebooks.dim() == 3 && z.size(1) == codebooks.size(2) && z.size(1) > 0 &&
         codebooks.size(0) > 0 && codebooks.size(1) > 0;
}

bool has_indices(const Tensor& z, const Tensor& codebooks, const Tensor& indices) {
  return indices.dim() == 2 && indices.size(0) == z.size(0) &&
         indices.size(1) == codebooks.size(0) && indices.scalar_type() == ScalarType::Long;
}

std::tuple<Tensor, Tensor, Tensor> residual_nearest_code_cpu(const Tensor& z,
                                                             const Tensor& codebooks, bool) {
  STD_TORCH_CHECK(fits(z, codebooks),
                  "expected z [N, D] and codebooks [Q, K, D] with Q, K, D >= 1.");
  const int64_t num_rows = z.size(0), dim = z.size(1), quantizers = codebooks.size(0);
  Tensor z_q = new_tensor(z, {num_rows, dim});
  Tensor indices = new_tensor(z, {num_rows, quantizers}, ScalarType::Long);
  Tensor commitments = new_tensor(z, {quantizers}, ScalarType::Float);
  const cpu::KernelTable& kernels = cpu::kernels();
  const int64_t blocks = num_rows / kernels.nearest_code.block_rows(dim) + 1;
  std::vector<double> errors(blocks * quantizers, 0.0);
  if (num_rows > 0) {
    cpu::ResidualProblem problem = {};
    problem.z = rows_of(z, "z");
    problem.indices = indices.mutable_data_ptr<int64_t>();
    problem.z_q = z_q.mutable_data_ptr();
    problem.block_errors = errors.data();
    cpu::search_residuals(problem, num_rows, codebooks_of(codebooks), kernels, run_parts);
  }
  const double count = static_cast<double>(num_rows > 0 ? num_rows : 1) * static_cast<double>(dim);
  float* const means = commitments.mutable_data_ptr<float>();
  for (int64_t q = 0; q < quantizers; ++q) {
    double total = 0;
    for (int64_t block = 0; block < blocks; ++block) total += errors[block * quantizers + q];
    means[q] = static_cast<float>(total / count);
  }
  return {z_q, indices, commitments};
}

Tensor residual_nearest_code_backward_cpu(const Tensor& dz_q, const Tensor& dcommitments,
                                          const Tensor& z, const Tensor& codebooks,
                                          const Tensor& indices, bool rotate) {
  STD_TORCH_CHECK(fits(z, codebooks) && has_indices(z, codebooks, indices) && dz_q.dim() == 2 &&
                      dz_q.size(0) == z.size(0) && dz_q.size(1) == z.size(1) &&
                      dcommitments.dim() == 1 && dcommitments.size(0) == codebooks.size(0) &&
                      dcommitments.scalar_type() == ScalarType::Float,
                  "expected dz_q and z [N, D], dcommitments float32 [Q], "
                  "codebooks [Q, K, D] and indices int64 [N, Q].");
  const int64_t num_rows = z.size(0), dim = z.size(1), quantizers = codebooks.size(0);
  Tensor dz = new_tensor(z, {num_rows, dim});
  if (num_rows == 0) return dz;
  const auto num_codes = static_cast<uint64_t>(codebooks.size(1));
  const auto* const codes = indices.const_data_ptr<int64_t>();
  const int64_t row_stride = indices.stride(0), column_stride = indices.stride(1);
  const int64_t* outside = nullptr;
  for (int64_t n = 0; n < num_rows; ++n) {
    for (int64_t q = 0; q < quantizers; ++q) {
      const int64_t* const code = codes + n * row_stride + q * column_stride;
      if (static_cast<uint64_t>(*code) >= num_codes) outside = code;  // as unsigned, -1 is large
    }
  }
  STD_TORCH_CHECK(!outside, "expected indices from 0 to below ", codebooks.size(1), ", got ",
                  *outside, ".");
  const float* const weights = dcommitments.const_data_ptr<float>();
  std::vector<float> scales(quantizers);
  for (int64_t q = 0; q < quantizers; ++q) {
    const double weight = static_cast<double>(weights[q * dcommitments.stride(0)]);
    scales[q] =
        static_cast<float>(2 * weight / (static_cast<double>(num_rows) * static_cast<double>(dim)));
  }
  const cpu::ResidualBackward problem = {.dz_q = rows_of(dz_q, "dz_q"),
                                         .z = rows_of(z, "z"),
                                         .codebooks = codebooks_of(codebooks),
                                         .indices = indices.const_data_ptr<int64_t>(),
                                         .indices_stride_row = indices.stride(0),
                                         .indices_stride_col = indices.stride(1),
                                         .scales = scales.data(),
                                         .rotate = rotate,
                                         .dz = dz.mutable_data_ptr()};
  const cpu::KernelTable& kernels = cpu::kernels();
  parallel_for(0, num_rows, 1 + kElementGrain / (quantizers * dim + 1),
               [&](int64_t begin, int64_t end) {
                 std::vector<float> memory(5 * (dim + 16));
                 kernels.residual.backward(problem, begin, end, memory.data());
               });
  return dz;
}

std::tuple<Tensor, Tensor> residual_code_statistics_cpu(const Tensor& z, const Tensor& codebooks,
                                                        const Tensor& indices) {
  STD_TORCH_CHECK(fits(z, codebooks) && has_indices(z, codebooks, indices),
                  "expected z [N, D], codebooks [Q, K, D] and indices "
                  "int64 [N, Q].");
  STD_TORCH_CHECK(z.size(0) <= UINT32_MAX, "expected at most 4,294,967,295 vectors.");
  const int64_t quantizers = codebooks.size(0), num_codes = codebooks.size(1);
  Tensor counts = new_tensor(indices, {quantizers, num_codes});
  Tensor sums = new_tensor(z, {quantizers, num_codes, z.size(1)}, ScalarType::Float);
  const cpu::ResidualStatistics problem = {.z = rows_of(z, "z"),
                                           .num_rows = z.size(0),
                                           .codebooks = codebooks_of(codebooks),
                                           .indices = indices.const_data_ptr<int64_t>(),
                                           .indices_stride_row = indices.stride(0),
                                           .indices_stride_col = indices.stride(1),
                                           .counts = counts.mutable_data_ptr<int64_t>(),
                                           .sums = sums.mutable_data_ptr<float>()};
  const int64_t bad_row = cpu::residual_statistics(problem, cpu::kernels(), run_parts);
  STD_TORCH_CHECK(bad_row < 0, "expected indices in -1..", num_codes - 1, ", got another at row ",
                  bad_row, ".");
  return {counts, sums};
}

}  // namespace
}  // namespace vqvae2_fast

STABLE_TORCH_LIBRARY_IMPL(vqvae2_fast, CPU, m) {
  m.impl("residual_nearest_code", TORCH_BOX(&vqvae2_fast::residual_nearest_code_cpu));
  m.impl("residual_nearest_code_backward",
         TORCH_BOX(&vqvae2_fast::residual_nearest_code_backward_cpu));
  m.impl("residual_code_statistics", TORCH_BOX(&vqvae2_fast::residual_code_statistics_cpu));
}
