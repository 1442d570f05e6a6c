// Warp matrix instructions, computed from the fragment layouts of the PTX manual (9.7.15). Products
// of bfloat16 and tf32 are exact in float32; sums here run over k in order, but a GPU has its own
// order and intermediate precision. So results agree up to rounding, not bit for bit.
#pragma once

#include "intrinsics.h"

namespace cuda_on_cpu {

// d [16, 8] += a [16, 16] b [16, 8]
void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where);
// d [16, 8] += a [16, 8] b [8, 8]; of each operand the upper 19 bits count.
void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where);
// d [16, 8] += a [16, 32] b [32, 8], exact

// Loads `count` 8x8 matrices of 16-bit elements; lane i of each eight gives the address of one row.
inline void ldmatrix(uint32_t* registers, int count, const void* row, Where where) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) {
    fail("ldmatrix at %s:%d: a row is not aligned to 16 bytes", where.file, where.line);
  }
  const Slot* slots = meet(~0u, "ldmatrix", &row, sizeof(row), false, where);
  const int group = static_cast<int>(lane()) / 4, in_group = static_cast<int>(lane()) % 4;
  for (int m = 0; m < count; ++m) {
    const auto element = [&](int r, int c) {
      return static_cast<uint32_t>(from_slot<const uint16_t*>(slots[m * 8 + r])[c]);
    };
    const int c = 2 * in_group;
    registers[m] = element(group, c) | element(group, c + 1) << 16;
  }
}

}  // namespace cuda_on_cpu
