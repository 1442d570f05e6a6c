// Warp matrix instructions, computed from the fragment layouts of the PTX manual (9.7.15). Products
// of bfloat16 and tf32 are exact in float32; sums here run over k in order, where a GPU's order and
// intermediate precision are its own: results agree to rounding, not bit for bit.
#pragma once

#include <string.h>

#include "intrinsics.h"

namespace cuda_on_cpu {

inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

struct MatrixOperands {
  uint32_t a[4], b[2];
};

inline const MatrixOperands& operands(const Slot* slots, int lane) {
  return *reinterpret_cast<const MatrixOperands*>(slots[lane].bytes);
}

// d [16, 8] += a [16, 16] b [16, 8]
inline void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              Where where) {
  const MatrixOperands own = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const Slot* slots = meet(~0u, "mma.m16n8k16", &own, sizeof(own), false, where);
  const int group = static_cast<int>(lane()) / 4, in_group = static_cast<int>(lane()) % 4;
  const auto half = [](uint32_t pair, int k) {
    return float_of(k % 2 != 0 ? pair & 0xFFFF0000u : pair << 16);
  };
  for (int i = 0; i < 4; ++i) {
    const int row_half = i / 2, column = in_group * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int pair = k % 8 / 2;
      const float x = half(operands(slots, group * 4 + pair).a[row_half + 2 * (k / 8)], k);
      const float y = half(operands(slots, column * 4 + pair).b[k / 8], k);
      d[i] += x * y;
    }
  }
}

// d [16, 8] += a [16, 8] b [8, 8]; of each operand the upper 19 bits count.
inline void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                             Where where) {
  const MatrixOperands own = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const Slot* slots = meet(~0u, "mma.m16n8k8", &own, sizeof(own), false, where);
  const int group = static_cast<int>(lane()) / 4, in_group = static_cast<int>(lane()) % 4;
  constexpr uint32_t kTf32 = 0xFFFFE000u;
  for (int i = 0; i < 4; ++i) {
    const int row_half = i / 2, column = in_group * 2 + i % 2;
    for (int k = 0; k < 8; ++k) {
      const float x =
          float_of(operands(slots, group * 4 + k % 4).a[row_half + 2 * (k / 4)] & kTf32);
      const float y = float_of(operands(slots, column * 4 + k % 4).b[k / 4] & kTf32);
      d[i] += x * y;
    }
  }
}

// Loads `count` 8x8 matrices of 16-bit elements; lane i of each eight gives the address of one row.
inline void ldmatrix(uint32_t* registers, int count, const void* row, bool transposed,
                     Where where) {
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
    registers[m] = transposed ? element(c, group) | element(c + 1, group) << 16
                              : element(group, c) | element(group, c + 1) << 16;
  }
}

}  // namespace cuda_on_cpu
