#include "gumbel_noise.cuh"
#include "launch.h"

extern "C" const char* vq_gumbel_noise_cuda(const vqvae2_fast::cuda::GumbelNoise& args,
                                            void* cuda_stream) {
  using namespace vqvae2_fast::cuda;
  constexpr int kThreads = 256;
  // Enough blocks to fill any card; the kernel strides over the rest.
  constexpr int64_t kMaxBlocks = 4096;
  const int64_t blocks = (num_counters(args) + kThreads - 1) / kThreads;
  if (blocks == 0) return nullptr;
  const LaunchShape shape = {
      .grid = dim3(static_cast<unsigned>(blocks < kMaxBlocks ? blocks : kMaxBlocks)),
      .block = dim3(kThreads),
      .stream = cuda_stream};
  return launch("gumbel_noise_kernel", gumbel_noise_kernel, shape, args);
}

extern "C" const char* vq_why_not_cuda() {
  return vqvae2_fast::cuda::why_not_runnable(vqvae2_fast::cuda::gumbel_noise_kernel);
}
