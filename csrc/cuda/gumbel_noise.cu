#include "gumbel_noise.cuh"
#include "gumbel_noise.h"
#include "launch.h"

extern "C" const char* vq_gumbel_noise_cuda(const int64_t* samples, int64_t sample_stride,
                                            int64_t batch, const int64_t* positions,
                                            int64_t position_stride, int64_t length,
                                            int64_t num_embeddings, uint64_t seed, uint32_t stream,
                                            float* noise, void* cuda_stream) {
  using namespace vqvae2_fast::cuda;
  constexpr int kThreads = 256;
  // Enough blocks to fill any card; the kernel strides over the rest.
  constexpr int64_t kMaxBlocks = 4096;
  const int64_t num_counters = batch * length * ((num_embeddings + 3) / 4);
  if (num_counters == 0) return nullptr;
  const GumbelNoiseArgs args = {samples,        sample_stride, positions, position_stride, length,
                                num_embeddings, num_counters,  seed,      stream,          noise};
  const int64_t blocks = (num_counters + kThreads - 1) / kThreads;
  LaunchShape shape;
  shape.grid = dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks));
  shape.block = dim3(kThreads);
  shape.stream = cuda_stream;
  return launch("gumbel_noise_kernel", gumbel_noise_kernel, shape, args);
}
