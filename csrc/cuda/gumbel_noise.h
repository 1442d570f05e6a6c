// Plain C launcher of the CUDA noise kernel; returns null or what went wrong.
#pragma once

#include <stdint.h>

extern "C" const char* vq_gumbel_noise_cuda(const int64_t* samples, int64_t sample_stride,
                                            int64_t batch, const int64_t* positions,
                                            int64_t position_stride, int64_t length,
                                            int64_t num_embeddings, uint64_t seed, uint32_t stream,
                                            float* noise, void* cuda_stream);
