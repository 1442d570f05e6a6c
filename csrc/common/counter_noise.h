// Counter-based noise: Philox4x32-10, uniforms and Gumbel noise, the same bits on CPU and CUDA.
//
// Only integer arithmetic and separately rounded float32 products and sums: nothing here may be
// contracted to a fused multiply-add, so host code is compiled with -ffp-contract=off and device
// code uses the rounding intrinsics. The definition is vqvae2_fast/ops/gumbel_noise/op.py.
#pragma once

#include <stdint.h>

#if defined(__CUDA_ARCH__)
#define VQ_MUL(a, b) __fmul_rn((a), (b))
#define VQ_ADD(a, b) __fadd_rn((a), (b))
#else
#define VQ_MUL(a, b) ((a) * (b))
#define VQ_ADD(a, b) ((a) + (b))
#endif

#if defined(__CUDACC__)
#define VQ_INLINE static __host__ __device__ __forceinline__
#else
#define VQ_INLINE static inline
#endif

namespace vqvae2_fast {
namespace {

constexpr uint32_t kPurposeDraw = 0;
constexpr uint32_t kPurposeDropout = 1;

// Philox4x32: the factors of a round, and what a round adds to the key.
constexpr uint32_t kPhiloxFactor0 = 0xD2511F53u, kPhiloxFactor1 = 0xCD9E8D57u;
constexpr uint32_t kPhiloxStep0 = 0x9E3779B9u, kPhiloxStep1 = 0xBB67AE85u;

struct Words4 {
  uint32_t w[4];
};

VQ_INLINE Words4 philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t seed) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(kPhiloxFactor0) * c0;
    const uint64_t p1 = static_cast<uint64_t>(kPhiloxFactor1) * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += kPhiloxStep0;
    k1 += kPhiloxStep1;
  }
  return {{c0, c1, c2, c3}};
}

VQ_INLINE float bits_to_float(uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
#endif
}

VQ_INLINE uint32_t float_to_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
#endif
}

// In (0, 1): ((word >> 9) + 0.5) * 2^-23, exact.
VQ_INLINE float uniform_from_word(uint32_t word) {
  return VQ_MUL(VQ_ADD(static_cast<float>(static_cast<int32_t>(word >> 9)), 0.5f),
                1.1920928955078125e-7f);
}

// Natural logarithm of a normal positive float: exponent extraction, then the Cephes polynomial.
VQ_INLINE float fixed_log(float x) {
  const uint32_t bits = float_to_bits(x) - 0x3F3504F3u;
  const float exponent = static_cast<float>(static_cast<int32_t>(bits) >> 23);
  const float f = VQ_ADD(bits_to_float((bits & 0x7FFFFFu) + 0x3F3504F3u), -1.0f);
  const float square = VQ_MUL(f, f);
  float p = 7.0376836292e-2f;
  p = VQ_ADD(VQ_MUL(p, f), -1.1514610310e-1f);
  p = VQ_ADD(VQ_MUL(p, f), 1.1676998740e-1f);
  p = VQ_ADD(VQ_MUL(p, f), -1.2420140846e-1f);
  p = VQ_ADD(VQ_MUL(p, f), 1.4249322787e-1f);
  p = VQ_ADD(VQ_MUL(p, f), -1.6668057665e-1f);
  p = VQ_ADD(VQ_MUL(p, f), 2.0000714765e-1f);
  p = VQ_ADD(VQ_MUL(p, f), -2.4999993993e-1f);
  p = VQ_ADD(VQ_MUL(p, f), 3.3333331174e-1f);
  float tail = VQ_MUL(VQ_MUL(p, f), square);
  tail = VQ_ADD(tail, VQ_MUL(exponent, -2.12194440e-4f));
  tail = VQ_ADD(tail, -VQ_MUL(square, 0.5f));
  return VQ_ADD(VQ_ADD(f, tail), VQ_MUL(exponent, 0.693359375f));
}

VQ_INLINE float gumbel_from_word(uint32_t word) {
  return -fixed_log(-fixed_log(uniform_from_word(word)));
}

}  // namespace
}  // namespace vqvae2_fast
