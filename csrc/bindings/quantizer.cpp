// The search and the statistics of a codebook: `nearest_code`, `vector_quantize` with its gradient,
// `code_statistics` and `ema_update_` on the CPU.
//
// As every file of operators here, it uses only torch's stable ABI: a build against any
// torch >= 2.11 loads into any other. Schemas are defined in Python (vqvae2_fast/ops/<op>/op.py).
// Python has checked shapes and dtypes; only what would be unsafe is checked again here.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <atomic>
#include <optional>
#include <tuple>
#include <vector>

#include "../cpu/kernels.h"
#include "../cpu/quantizer/code_statistics.h"
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
// Floats of a result that is written past the caches. It would push out what is still needed, and a
// line that is written in a cache is read from memory first.
constexpr int64_t kUncachedFloats = 2 << 20;

// An output with one entry per row of z. `new_empty` would go through the dispatcher, which takes a
// sixth of a call with a few vectors; it would only add that memory is filled when torch is asked
// to.
Tensor output_of(const Tensor& z, std::initializer_list<int64_t> sizes, ScalarType dtype) {
  if (z.size(0) > cpu::kFewRows) return new_tensor(z, sizes, dtype);
  int64_t strides[2] = {1, 1};
  if (sizes.size() == 2) strides[0] = sizes.begin()[1];
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(sizes.size()), sizes.begin(), strides,
      torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype)),
      aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

void search(const cpu::NearestCodeProblem& problem, int64_t num_rows, const Tensor& codebook,
            const cpu::KernelTable& kernels) {
  cpu::search_codebook(kernels.nearest_code, problem, num_rows, rows_of(codebook, "codebook"),
                       codebook.size(0), codebook.size(1), kernels, run_parts);
}

std::tuple<Tensor, Tensor> nearest_code_cpu(const Tensor& z, const Tensor& codebook) {
  STD_TORCH_CHECK(z.dim() == 2 && codebook.dim() == 2 && z.size(1) == codebook.size(1) &&
                      z.size(1) > 0 && codebook.size(0) > 0,
                  "expected z [N, D] and codebook [K, D] with K, D >= 1.");
  const int64_t num_rows = z.size(0);
  Tensor indices = output_of(z, {num_rows}, ScalarType::Long);
  Tensor sqdist = output_of(z, {num_rows}, ScalarType::Float);
  if (num_rows == 0) return {indices, sqdist};
  cpu::NearestCodeProblem problem = {};
  problem.z = rows_of(z, "z");
  problem.indices = indices.mutable_data_ptr<int64_t>();
  problem.sqdist = sqdist.mutable_data_ptr<float>();
  search(problem, num_rows, codebook, cpu::kernels());
  return {indices, sqdist};
}

std::tuple<Tensor, Tensor, Tensor> vector_quantize_cpu(const Tensor& z, const Tensor& codebook) {
  STD_TORCH_CHECK(z.dim() == 2 && codebook.dim() == 2 && z.size(1) == codebook.size(1) &&
                      z.size(1) > 0 && codebook.size(0) > 0,
                  "expected z [N, D] and codebook [K, D] with K, D >= 1.");
  const int64_t num_rows = z.size(0), dim = z.size(1);
  Tensor z_q = output_of(z, {num_rows, dim}, z.scalar_type());
  Tensor indices = output_of(z, {num_rows}, ScalarType::Long);
  Tensor commitment = output_of(z, {}, ScalarType::Float);
  float* const mean = commitment.mutable_data_ptr<float>();
  *mean = 0;
  if (num_rows == 0) return {z_q, indices, commitment};
  const cpu::KernelTable& kernels = cpu::kernels();
  std::vector<double> errors(num_rows / kernels.nearest_code.block_rows(dim) + 1, 0.0);
  cpu::NearestCodeProblem problem = {};
  problem.z = rows_of(z, "z");
  problem.indices = indices.mutable_data_ptr<int64_t>();
  problem.z_q = z_q.mutable_data_ptr();
  problem.z_q_past_caches = num_rows * dim >= kUncachedFloats;
  problem.block_errors = errors.data();
  search(problem, num_rows, codebook, kernels);
  double total = 0;
  for (const double error : errors) total += error;
  *mean = static_cast<float>(total / (static_cast<double>(num_rows) * static_cast<double>(dim)));
  return {z_q, indices, commitment};
}

Tensor vector_quantize_backward_cpu(const Tensor& dz_q, const Tensor& dcommitment, const Tensor& z,
                                    const Tensor& codes, const std::optional<Tensor>& indices) {
  STD_TORCH_CHECK(dz_q.dim() == 2 && z.dim() == 2 && codes.dim() == 2 &&
                      dz_q.size(0) == z.size(0) && dz_q.size(1) == z.size(1) &&
                      codes.size(1) == z.size(1) && dcommitment.dim() == 0 &&
                      dcommitment.scalar_type() == ScalarType::Float &&
                      (indices ? indices->dim() == 1 && indices->size(0) == z.size(0) &&
                                     indices->scalar_type() == ScalarType::Long
                               : codes.size(0) == z.size(0)),
                  "expected dz_q and z [N, D], dcommitment 0-d float32, "
                  "and codes [N, D], or codes [K, D] and indices int64 [N].");
  const int64_t num_rows = z.size(0), dim = z.size(1);
  Tensor dz = new_tensor(z, {num_rows, dim});
  if (num_rows == 0) return dz;
  const double scale = 2 * static_cast<double>(*dcommitment.const_data_ptr<float>()) /
                       (static_cast<double>(num_rows) * static_cast<double>(dim));
  cpu::QuantizeGradient problem = {};
  problem.dz_q = rows_of(dz_q, "dz_q");
  problem.z = rows_of(z, "z");
  problem.code = rows_of(codes, "codes");
  problem.code_rows = indices ? indices->const_data_ptr<int64_t>() : nullptr;
  problem.code_rows_stride = indices ? indices->stride(0) : 0;
  problem.scale = static_cast<float>(scale);
  problem.dim = dim;
  problem.dz = dz.mutable_data_ptr();
  problem.past_caches = num_rows * dim >= kUncachedFloats;
  const cpu::KernelTable& kernels = cpu::kernels();
  const int64_t num_codes = codes.size(0);
  std::atomic<bool> are_codes{true};
  parallel_for(0, num_rows, 1 + kElementGrain / (dim + 1), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; problem.code_rows && n < end; ++n) {
      const int64_t k = problem.code_rows[n * problem.code_rows_stride];
      if (k < 0 || k >= num_codes) {
        are_codes = false;
        return;
      }
    }
    kernels.quantize_backward(problem, begin, end);
  });
  STD_TORCH_CHECK(are_codes, "expected indices in 0..", num_codes - 1, ".");
  return dz;
}

std::tuple<Tensor, Tensor> code_statistics_cpu(const Tensor& z, const Tensor& indices,
                                               int64_t num_embeddings) {
  STD_TORCH_CHECK(z.dim() == 2 && indices.dim() == 1 && indices.size(0) == z.size(0) &&
                      indices.scalar_type() == ScalarType::Long && num_embeddings > 0,
                  "expected z [N, D] and indices int64 [N].");
  const int64_t dim = z.size(1);
  Tensor counts = new_tensor(indices, {num_embeddings}, ScalarType::Long);
  Tensor sums = new_tensor(z, {num_embeddings, dim}, ScalarType::Float);
  cpu::StatisticsProblem problem = {};
  problem.z = rows_of(z, "z");
  problem.num_rows = z.size(0);
  problem.dim = dim;
  problem.num_codes = num_embeddings;
  problem.indices = indices.const_data_ptr<int64_t>();
  problem.indices_stride = indices.stride(0);
  problem.counts = counts.mutable_data_ptr<int64_t>();
  problem.sums = sums.mutable_data_ptr<float>();
  const int64_t bad_row = cpu::code_statistics(problem, cpu::kernels(), run_parts);
  STD_TORCH_CHECK(bad_row < 0, "expected indices in 0..", num_embeddings - 1, ", got ",
                  problem.indices[bad_row * problem.indices_stride], " at row ", bad_row, ".");
  return {counts, sums};
}

void ema_update_cpu(const Tensor& counts, const Tensor& sums, Tensor cluster_size, Tensor embed_avg,
                    Tensor codebook, double decay, double epsilon) {
  const auto is_float = [](const Tensor& tensor) {
    return tensor.scalar_type() == ScalarType::Float && tensor.is_contiguous();
  };
  STD_TORCH_CHECK(is_float(sums) && is_float(cluster_size) && is_float(embed_avg) &&
                      is_float(codebook) && counts.is_contiguous() && codebook.dim() == 2 &&
                      counts.sizes() == codebook.sizes().slice(0, 1) &&
                      cluster_size.sizes() == counts.sizes() && sums.sizes() == codebook.sizes() &&
                      embed_avg.sizes() == codebook.sizes(),
                  "expected contiguous float32 tensors [K] and [K, D].");
  cpu::EmaProblem problem = {};
  problem.num_codes = codebook.size(0);
  problem.dim = codebook.size(1);
  if (counts.scalar_type() == ScalarType::Long) {
    problem.counts = counts.const_data_ptr<int64_t>();
  } else {
    STD_TORCH_CHECK(counts.scalar_type() == ScalarType::Float, "expected counts int64 or float32.");
    problem.float_counts = counts.const_data_ptr<float>();
  }
  problem.sums = sums.const_data_ptr<float>();
  problem.cluster_size = cluster_size.mutable_data_ptr<float>();
  problem.embed_avg = embed_avg.mutable_data_ptr<float>();
  problem.codebook = codebook.mutable_data_ptr<float>();
  problem.decay = decay;
  problem.epsilon = epsilon;
  cpu::kernels().ema_update(problem);
}

}  // namespace
}  // namespace vqvae2_fast

STABLE_TORCH_LIBRARY_IMPL(vqvae2_fast, CPU, m) {
  m.impl("nearest_code", TORCH_BOX(&vqvae2_fast::nearest_code_cpu));
  m.impl("vector_quantize", TORCH_BOX(&vqvae2_fast::vector_quantize_cpu));
  m.impl("vector_quantize_backward", TORCH_BOX(&vqvae2_fast::vector_quantize_backward_cpu));
  m.impl("ema_update_", TORCH_BOX(&vqvae2_fast::ema_update_cpu));
  m.impl("code_statistics", TORCH_BOX(&vqvae2_fast::code_statistics_cpu));
}
