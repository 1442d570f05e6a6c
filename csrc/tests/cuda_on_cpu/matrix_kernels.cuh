// Kernels of portable_test.cu for tensor-core instructions and number formats.
#pragma once

#include <string.h>

#include "../../cuda/portable.h"

namespace cuda_test {

using namespace vqvae2_fast::cuda;

// The formats again, in host arithmetic.
inline float float_of_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}
inline uint32_t bits_of_float(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof(bits));
  return bits;
}
inline float float_of_bf16(uint16_t bits) {
  return float_of_bits(static_cast<uint32_t>(bits) << 16);
}
inline uint16_t bf16_bits(float value) {
  const uint32_t bits = bits_of_float(value), kept = bits >> 16, rest = bits & 0xFFFFu;
  const bool up = rest > 0x8000u || (rest == 0x8000u && kept % 2 == 1);
  return static_cast<uint16_t>(kept + up);
}
inline float rounded_to_tf32(float value) {
  const uint32_t bits = bits_of_float(value), kept = bits >> 13, rest = bits & 0x1FFFu;
  return float_of_bits((kept + (rest >= 0x1000u)) << 13);
}

// products [2, 16, 8]: a [16, 32] times b [8, 32] transposed, and a32 [16, 16] b32 [16, 8].
__global__ void matrix_kernel(const uint16_t* a, const uint16_t* b, const float* a32,
                              const float* b32, float* products) {
  VQ_SHARED(uint16_t, tile, [16][32]);
  const int lane = static_cast<int>(threadIdx.x), g = lane / 4, t = lane % 4;
  for (int i = lane; i < 16 * 32; i += 32) tile[i / 32][i % 32] = a[i];
  __syncwarp();
  const auto store = [&](int which, const float (&d)[4]) {
    float* out = products + which * 128;
    for (int i = 0; i < 4; ++i) out[(g + i / 2 * 8) * 8 + 2 * t + i % 2] = d[i];
  };
  float bf16[4] = {}, tf32[4] = {};
  for (int k = 0; k < 32; k += 16) {
    const uint32_t b_pairs[2] = {
        *reinterpret_cast<const uint32_t*>(&b[g * 32 + k + 2 * t]),
        *reinterpret_cast<const uint32_t*>(&b[g * 32 + k + 8 + 2 * t]),
    };
    uint32_t a_pairs[4];
    load_matrix_x4(a_pairs, &tile[lane % 16][k + lane / 16 * 8]);
    mma_bf16(bf16, a_pairs, b_pairs);
  }
  for (int k = 0; k < 16; k += 8) {
    uint32_t a_words[4], b_words[2];
    for (int i = 0; i < 4; ++i) {
      a_words[i] = to_tf32(a32[(g + i % 2 * 8) * 16 + k + t + i / 2 * 4]);
    }
    for (int i = 0; i < 2; ++i) b_words[i] = to_tf32(b32[(k + t + 4 * i) * 8 + g]);
    mma_tf32(tf32, a_words, b_words);
  }
  store(0, bf16);
  store(1, tf32);
}

// out [count, 2]: rounded to bfloat16 and to tf32, as floats.
__global__ void formats_kernel(const float* in, float* out, int count) {
  for (int i = static_cast<int>(threadIdx.x); i < count; i += 32) {
    const uint32_t pair = pack_bf16x2(in[i], 7.0f);
    const bool upper_is_seven = bit_cast<float>(pair & 0xFFFF0000u) == 7.0f;
    out[2 * i] = upper_is_seven ? bit_cast<float>(pair << 16) : -99.0f;
    out[2 * i + 1] = bit_cast<float>(to_tf32(in[i]));
  }
}

}  // namespace cuda_test
