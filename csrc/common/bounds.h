// The bound on what a sampler multiplies. vqvae2_fast/sampling/bounds.py has the same number and
// says why no sum within it overflows.
#pragma once

#if defined(__CUDACC__)
#define VQ_BOUND_INLINE static __host__ __device__ __forceinline__
#else
#define VQ_BOUND_INLINE static inline
#endif

namespace vqvae2_fast {
namespace {

constexpr float kSamplingBound = 1048576.0f;  // 2^20
constexpr float kBeyondBound = __builtin_nanf("");

// x, or NaN where its magnitude is beyond the bound. The NaN reaches the logits, which are checked.
VQ_BOUND_INLINE float within_bound(float x) {
  return x >= -kSamplingBound && x <= kSamplingBound ? x : kBeyondBound;
}

}  // namespace
}  // namespace vqvae2_fast
