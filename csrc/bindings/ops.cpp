// Registration of the compiled operators, on torch's stable ABI alone: a build against any
// torch >= 2.11 loads into any other. Schemas are defined in Python (vqvae2_fast/ops/<op>/op.py);
// this file only implements them. Python has checked shapes and dtypes; what is checked again here
// is what would be unsafe.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <functional>
#include <tuple>
#include <vector>

#include "../cpu/kernels.h"
#include "../cpu/pack_codebook.h"
#if defined(VQ_WITH_CUDA)
#include <torch/csrc/stable/accelerator.h>

#include "../cuda/gumbel_noise.h"

// Lives in libtorch_cuda, which a CPU build of torch does not have.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void**);
#endif

namespace vqvae2_fast {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Rows a thread takes at a time: enough to pay for waking it.
constexpr int64_t kRowGrain = 256;
// Rows for which packing a codebook costs more than searching it as it is.
constexpr int64_t kDirectRows = 8;
constexpr int64_t kNoiseGrain = 4096;

cpu::Rows rows_of(const Tensor& matrix) {
  cpu::Rows rows = {matrix.const_data_ptr(), matrix.stride(0), matrix.stride(1), {}};
  switch (matrix.scalar_type()) {
    case ScalarType::Float:
      rows.dtype = cpu::Dtype::kFloat32;
      break;
    case ScalarType::BFloat16:
      rows.dtype = cpu::Dtype::kBFloat16;
      break;
    case ScalarType::Half:
      rows.dtype = cpu::Dtype::kFloat16;
      break;
    default:
      STD_TORCH_CHECK(false, "vqvae2_fast: expected float32, bfloat16 or float16.");
  }
  return rows;
}

void run_parts(int64_t count, const std::function<void(int64_t, int64_t)>& part) {
  torch::stable::parallel_for(0, count, 4, part);
}

// Solves the problem for all rows, blocks of rows in parallel.
void search(cpu::NearestCodeProblem problem, int64_t num_rows, const Tensor& codebook,
            const cpu::KernelTable& kernels) {
  const cpu::Rows codes = rows_of(codebook);
  const int64_t num_codes = codebook.size(0), dim = codebook.size(1);
  const int64_t block = kernels.search_block_rows(dim);
  const int64_t workspace = kernels.search_workspace(dim);
  const auto search_blocks = [&](int64_t first, int64_t last) {
    const auto memory = cpu::aligned<char>(workspace);
    const int64_t end = last * block < num_rows ? last * block : num_rows;
    kernels.search_rows(problem, first * block, end, memory.get());
  };
  if (num_rows <= kDirectRows) {
    const cpu::PackedCodebookStorage unpacked = cpu::unpacked_codebook(codes, num_codes, dim);
    problem.codebook = &unpacked.view;
    search_blocks(0, (num_rows + block - 1) / block);
    return;
  }
  const auto packed = cpu::packed_codebook(codes, num_codes, dim, kernels, run_parts);
  problem.codebook = &packed->view;
  torch::stable::parallel_for(0, (num_rows + block - 1) / block, 1, search_blocks);
}

std::tuple<Tensor, Tensor> nearest_code_cpu(const Tensor& z, const Tensor& codebook) {
  STD_TORCH_CHECK(
      z.dim() == 2 && codebook.dim() == 2 && z.size(1) == codebook.size(1) && codebook.size(0) > 0,
      "nearest_code: expected z [N, D] and codebook [K, D] with K >= 1.");
  const int64_t num_rows = z.size(0);
  Tensor indices = torch::stable::new_empty(z, {num_rows}, ScalarType::Long);
  Tensor sqdist = torch::stable::new_empty(z, {num_rows}, ScalarType::Float);
  if (num_rows == 0) return {indices, sqdist};
  cpu::NearestCodeProblem problem = {};
  problem.z = rows_of(z);
  problem.indices = static_cast<int64_t*>(indices.mutable_data_ptr());
  problem.sqdist = static_cast<float*>(sqdist.mutable_data_ptr());
  search(problem, num_rows, codebook, cpu::kernels());
  return {indices, sqdist};
}

std::tuple<Tensor, Tensor> code_statistics_cpu(const Tensor& z, const Tensor& indices,
                                               int64_t num_embeddings) {
  STD_TORCH_CHECK(z.dim() == 2 && indices.dim() == 1 && indices.size(0) == z.size(0) &&
                      indices.scalar_type() == ScalarType::Long && num_embeddings > 0,
                  "code_statistics: expected z [N, D] and indices int64 [N].");
  const int64_t num_rows = z.size(0), dim = z.size(1);
  const int64_t* index = static_cast<const int64_t*>(indices.const_data_ptr());
  const int64_t stride = num_rows > 0 ? indices.stride(0) : 1;

  // A counting sort by code, stable, so that each code's rows are added in their own order.
  std::vector<int64_t> offsets(num_embeddings + 1, 0), order(num_rows);
  for (int64_t n = 0; n < num_rows; ++n) {
    const int64_t k = index[n * stride];
    STD_TORCH_CHECK(k >= 0 && k < num_embeddings, "code_statistics: expected indices in 0..",
                    num_embeddings - 1, ", got ", k, " at row ", n, ".");
    ++offsets[k + 1];
  }
  Tensor counts = torch::stable::new_empty(indices, {num_embeddings}, ScalarType::Long);
  int64_t* count = static_cast<int64_t*>(counts.mutable_data_ptr());
  for (int64_t k = 0; k < num_embeddings; ++k) {
    count[k] = offsets[k + 1];
    offsets[k + 1] += offsets[k];
  }
  std::vector<int64_t> next(offsets.begin(), offsets.end() - 1);
  for (int64_t n = 0; n < num_rows; ++n) order[next[index[n * stride]]++] = n;

  Tensor sums = torch::stable::new_empty(z, {num_embeddings, dim}, ScalarType::Float);
  const cpu::KernelTable& kernels = cpu::kernels();
  const cpu::Rows rows = rows_of(z);
  float* sum = static_cast<float*>(sums.mutable_data_ptr());
  const int64_t grain = 1 + kRowGrain * num_embeddings / (num_rows + 1);
  torch::stable::parallel_for(0, num_embeddings, grain, [&](int64_t first, int64_t last) {
    std::vector<double> accumulator(dim);
    kernels.code_sums(rows, dim, order.data(), offsets.data(), first, last, sum,
                      accumulator.data());
  });
  return {counts, sums};
}

Tensor gumbel_noise_cpu(const Tensor& samples, const Tensor& positions, int64_t num_embeddings,
                        int64_t seed, int64_t stream) {
  const int64_t batch = samples.size(0), length = positions.size(0);
  Tensor noise =
      torch::stable::new_empty(samples, {batch, length, num_embeddings}, ScalarType::Float);
  const int64_t* sample = static_cast<const int64_t*>(samples.const_data_ptr());
  const int64_t* position = static_cast<const int64_t*>(positions.const_data_ptr());
  const int64_t sample_stride = samples.stride(0), position_stride = positions.stride(0);
  float* out = static_cast<float*>(noise.mutable_data_ptr());
  const cpu::KernelTable& kernels = cpu::kernels();
  const int64_t grain = 1 + kNoiseGrain / num_embeddings;
  torch::stable::parallel_for(0, batch * length, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernels.gumbel_noise(static_cast<uint64_t>(seed),
                           static_cast<uint32_t>(sample[i / length * sample_stride]),
                           static_cast<uint32_t>(position[i % length * position_stride]),
                           static_cast<uint32_t>(stream), num_embeddings, out + i * num_embeddings);
    }
  });
  return noise;
}

Tensor dropout_mask_cpu(const Tensor& seed, int64_t num_samples, int64_t num_rows,
                        int64_t num_columns, double dropout_p) {
  STD_TORCH_CHECK(seed.dim() == 0 && seed.scalar_type() == ScalarType::Long,
                  "dropout_mask: expected seed 0-d int64.");
  const uint64_t seed_value = *static_cast<const uint64_t*>(seed.const_data_ptr());
  Tensor keep =
      torch::stable::new_empty(seed, {num_samples, num_rows, num_columns}, ScalarType::Bool);
  uint8_t* out = static_cast<uint8_t*>(keep.mutable_data_ptr());
  const cpu::KernelTable& kernels = cpu::kernels();
  const int64_t grain = 1 + kNoiseGrain / (num_columns + 1);
  torch::stable::parallel_for(0, num_samples * num_rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernels.dropout_mask(seed_value, static_cast<uint32_t>(i / num_rows),
                           static_cast<uint32_t>(i % num_rows), num_columns,
                           static_cast<float>(dropout_p), out + i * num_columns);
    }
  });
  return keep;
}

#if defined(VQ_WITH_CUDA)
void* current_cuda_stream(const Tensor& tensor) {
  STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                  "vqvae2_fast: a CUDA tensor, and this torch was built without CUDA.");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return stream;
}

Tensor gumbel_noise_cuda(const Tensor& samples, const Tensor& positions, int64_t num_embeddings,
                         int64_t seed, int64_t stream) {
  const torch::stable::accelerator::DeviceGuard guard(samples.get_device_index());
  const int64_t batch = samples.size(0), length = positions.size(0);
  Tensor noise =
      torch::stable::new_empty(samples, {batch, length, num_embeddings}, ScalarType::Float);
  const char* error = vq_gumbel_noise_cuda(
      static_cast<const int64_t*>(samples.const_data_ptr()), samples.stride(0), batch,
      static_cast<const int64_t*>(positions.const_data_ptr()), positions.stride(0), length,
      num_embeddings, static_cast<uint64_t>(seed), static_cast<uint32_t>(stream),
      static_cast<float*>(noise.mutable_data_ptr()), current_cuda_stream(samples));
  STD_TORCH_CHECK(error == nullptr, "gumbel_noise [", batch, ", ", length, ", ", num_embeddings,
                  "]: ", error ? error : "");
  return noise;
}
#endif

}  // namespace
}  // namespace vqvae2_fast

STABLE_TORCH_LIBRARY_IMPL(vqvae2_fast, CPU, m) {
  m.impl("nearest_code", TORCH_BOX(&vqvae2_fast::nearest_code_cpu));
  m.impl("code_statistics", TORCH_BOX(&vqvae2_fast::code_statistics_cpu));
  m.impl("gumbel_noise", TORCH_BOX(&vqvae2_fast::gumbel_noise_cpu));
  m.impl("dropout_mask", TORCH_BOX(&vqvae2_fast::dropout_mask_cpu));
}

#if defined(VQ_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(vqvae2_fast, CUDA, m) {
  m.impl("gumbel_noise", TORCH_BOX(&vqvae2_fast::gumbel_noise_cuda));
}
#endif
