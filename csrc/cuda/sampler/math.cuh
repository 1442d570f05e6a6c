// exp, sigmoid and ELU as fixed sequences of operations, those of csrc/cpu/simd/math-inl.h.
#pragma once

#include "../../common/bounds.h"
#include "../portable.h"

namespace vqvae2_fast::cuda::sampler {

// 2^n and e^r - 1 with x = n ln 2 + r, |r| <= ln 2 / 2; x is clamped to -87..88, where 2^n is
// normal. The polynomial is that of Cephes' expf (below 1 ulp over this range).
struct SplitExponential {
  float scale, minus_one;
};

__device__ __forceinline__ SplitExponential split_exponential(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  // Not by fminf and fmaxf, which would make a number of NaN and hide that a sum overflowed.
  x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
  const float shifted = fmaf(x, 1.44269504088896341f, kMagic);
  const float n = shifted - kMagic;
  float r = fmaf(n, -0.693359375f, x);
  r = fmaf(n, 2.12194440e-4f, r);
  float p = 1.9875691500e-4f;
  p = fmaf(p, r, 1.3981999507e-3f);
  p = fmaf(p, r, 8.3334519073e-3f);
  p = fmaf(p, r, 4.1665795894e-2f);
  p = fmaf(p, r, 1.6666665459e-1f);
  p = fmaf(p, r, 5.0000001201e-1f);
  const uint32_t power = static_cast<uint32_t>(__float_as_int(shifted)) << 23;
  const float scale = __int_as_float(static_cast<int>(power + 0x3F800000u));
  return {scale, fmaf(p, r * r, r)};
}

__device__ __forceinline__ float exponential(float x) {
  const SplitExponential e = split_exponential(x);
  return fmaf(e.scale, e.minus_one, e.scale);
}

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

// x for x > 0, else e^x - 1 with a relative error of about an ulp, also near 0; NaN for NaN and for
// x beyond the bound on what is multiplied.
__device__ __forceinline__ float elu(float x) {
  if (!(x <= 0.0f)) return within_bound(x);
  const SplitExponential e = split_exponential(x);
  return fmaf(e.scale, e.minus_one, e.scale - 1.0f);
}

}  // namespace vqvae2_fast::cuda::sampler
