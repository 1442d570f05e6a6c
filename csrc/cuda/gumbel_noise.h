// Gumbel noise on CUDA: what the kernel takes, and its plain C launcher. Functions return null, or
// the text of what went wrong.
#pragma once

#include <stdint.h>

namespace vqvae2_fast::cuda {

// Sizes: B samples, P positions, K codes. Strides are in elements.
struct GumbelNoise {
  const int64_t* samples = nullptr;  // [B]
  int64_t sample_stride = 1, batch = 0;
  const int64_t* positions = nullptr;  // [P]
  int64_t position_stride = 1, length = 0;
  int64_t num_embeddings = 0;
  uint64_t seed = 0;
  uint32_t stream = 0;
  float* noise = nullptr;  // [B, P, K]
};

}  // namespace vqvae2_fast::cuda

extern "C" const char* vq_gumbel_noise_cuda(const vqvae2_fast::cuda::GumbelNoise& args,
                                            void* cuda_stream);
// Why this build's kernels cannot run on the current device.
extern "C" const char* vq_why_not_cuda();
