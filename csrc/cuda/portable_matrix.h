// Tensor-core instructions and number formats for portable.h. All 32 lanes of a warp take part.
//
// Fragments, with g = lane / 4 and t = lane % 4 (PTX manual, 9.7.15.5):
//   d of both            d[0], d[1]: row g, columns 2t, 2t + 1;  d[2], d[3]: row g + 8
//   mma_bf16, a [16,16]  a[0]: row g, k = 2t, 2t + 1;  a[1]: row g + 8;  a[2], a[3]: k + 8
//             b [16, 8]  b[0]: column g, k = 2t, 2t + 1;  b[1]: k + 8; the lower k in low halves
//   mma_tf32, a [16, 8]  a[0]: row g, k = t;  a[1]: row g + 8;  a[2], a[3]: the same at k + 4
//             b [ 8, 8]  b[0]: column g, k = t;  b[1]: k + 4
#pragma once

#include "portable.h"
#include "portable_copy.h"

namespace vqvae2_fast::cuda {

// Two float32 to bfloat16, to nearest even; `low` in the lower 16 bits.
__device__ __forceinline__ uint32_t pack_bf16x2(float low, float high) {
#if defined(CUDA_ON_CPU)
  const auto rounded = [](float x) {
    const uint32_t bits = bit_cast<uint32_t>(x);
    if (x != x) return 0x7FFFu;
    return (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
  };
  return rounded(low) | rounded(high) << 16;
#else
  uint32_t pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
#endif
}

// To nearest, ties away from zero: the only rounding to tf32 that the instruction has.
__device__ __forceinline__ uint32_t to_tf32(float x) {
#if defined(CUDA_ON_CPU)
  return (bit_cast<uint32_t>(x) + 0x1000u) & 0xFFFFE000u;
#else
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return bits;
#endif
}

// d += a b
__device__ __forceinline__ void mma_bf16(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2] VQ_WHERE) {
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::mma_m16n8k16_bf16(d, a, b, where);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

__device__ __forceinline__ void mma_tf32(float (&d)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2] VQ_WHERE) {
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::mma_m16n8k8_tf32(d, a, b, where);
#else
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// Four 8x8 matrices of 16-bit elements from shared memory: lane i gives the address of row i % 8 of
// matrix i / 8, aligned to 16 bytes. registers[m] of a lane holds row g, columns 2t, 2t + 1 of
// matrix m: of 32-bit elements, row g's element t.
__device__ __forceinline__ void load_matrix_x4(uint32_t (&registers)[4], const void* row VQ_WHERE) {
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::ldmatrix(registers, 4, row, where);
#else
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
               : "r"(shared_address(row))
               : "memory");
#endif
}

}  // namespace vqvae2_fast::cuda
