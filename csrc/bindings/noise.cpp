// `gumbel_noise` and `dropout_mask` on the stable ABI: counter-based noise, also on CUDA.
// Schemas: vqvae2_fast/ops/gumbel_noise/op.py and vqvae2_fast/ops/dropout_mask/op.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include "../cpu/kernels.h"
#include "dropout_seed.h"
#include "new_tensor.h"
#include "parallel.h"
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

constexpr int64_t kNoiseGrain = 4096;

void check_numbers(const Tensor& samples, const Tensor& positions, int64_t num_embeddings) {
  const auto is_list = [](const Tensor& tensor) {
    return tensor.dim() == 1 && tensor.scalar_type() == ScalarType::Long;
  };
  STD_TORCH_CHECK(is_list(samples) && is_list(positions) &&
                      samples.get_device_index() == positions.get_device_index() &&
                      num_embeddings > 0,
                  "expected samples and positions int64 [n] of one device, and one "
                  "code or more.");
}

Tensor gumbel_noise_cpu(const Tensor& samples, const Tensor& positions, int64_t num_embeddings,
                        int64_t seed, int64_t stream) {
  check_numbers(samples, positions, num_embeddings);
  const int64_t batch = samples.size(0), length = positions.size(0);
  Tensor noise = new_tensor(samples, {batch, length, num_embeddings}, ScalarType::Float);
  const int64_t* sample = samples.const_data_ptr<int64_t>();
  const int64_t* position = positions.const_data_ptr<int64_t>();
  const int64_t sample_stride = samples.stride(0), position_stride = positions.stride(0);
  float* out = noise.mutable_data_ptr<float>();
  const cpu::KernelTable& kernels = cpu::kernels();
  const int64_t grain = 1 + kNoiseGrain / num_embeddings;
  parallel_for(0, batch * length, grain, [&](int64_t begin, int64_t end) {
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
  const DropoutSeed drops = dropout_seed(seed);
  Tensor keep = new_tensor(seed, {num_samples, num_rows, num_columns}, ScalarType::Bool);
  uint8_t* out = reinterpret_cast<uint8_t*>(keep.mutable_data_ptr<bool>());
  const cpu::KernelTable& kernels = cpu::kernels();
  const int64_t grain = 1 + kNoiseGrain / (num_columns + 1);
  parallel_for(0, num_samples * num_rows, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      kernels.dropout_mask(drops.value, drops.first_sample + static_cast<uint32_t>(i / num_rows),
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
  check_numbers(samples, positions, num_embeddings);
  const torch::stable::accelerator::DeviceGuard guard(samples.get_device_index());
  const int64_t batch = samples.size(0), length = positions.size(0);
  Tensor noise = new_tensor(samples, {batch, length, num_embeddings}, ScalarType::Float);
  const cuda::GumbelNoise args = {.samples = samples.const_data_ptr<int64_t>(),
                                  .sample_stride = samples.stride(0),
                                  .batch = batch,
                                  .positions = positions.const_data_ptr<int64_t>(),
                                  .position_stride = positions.stride(0),
                                  .length = length,
                                  .num_embeddings = num_embeddings,
                                  .seed = static_cast<uint64_t>(seed),
                                  .stream = static_cast<uint32_t>(stream),
                                  .noise = noise.mutable_data_ptr<float>()};
  const char* error = vq_gumbel_noise_cuda(args, current_cuda_stream(samples));
  STD_TORCH_CHECK(error == nullptr, "gumbel_noise [", batch, ", ", length, ", ", num_embeddings,
                  "]: ", error ? error : "");
  return noise;
}
#endif

}  // namespace
}  // namespace vqvae2_fast

STABLE_TORCH_LIBRARY_IMPL(vqvae2_fast, CPU, m) {
  m.impl("gumbel_noise", TORCH_BOX(&vqvae2_fast::gumbel_noise_cpu));
  m.impl("dropout_mask", TORCH_BOX(&vqvae2_fast::dropout_mask_cpu));
}

#if defined(VQ_WITH_CUDA)
STABLE_TORCH_LIBRARY_IMPL(vqvae2_fast, CUDA, m) {
  m.impl("gumbel_noise", TORCH_BOX(&vqvae2_fast::gumbel_noise_cuda));
}
#endif
