// A matrix of rows in one of the input dtypes, with strides, and how its elements become float32.
#pragma once

#include <stdint.h>

namespace vqvae2_fast::cpu {

enum class Dtype { kFloat32, kBFloat16, kFloat16 };

struct Rows {
  const void* data;
  int64_t stride_row;  // in elements
  int64_t stride_col;
  Dtype dtype;
};

namespace {

inline float float_from_bits(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, sizeof(value));
  return value;
}

// IEEE half to float; exact, subnormals and NaN included.
inline float float_from_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7FFFu;
  if (magnitude >= 0x7C00u) return float_from_bits(sign | 0x7F800000u | (magnitude & 0x3FFu) << 13);
  if (magnitude >= 0x0400u) return float_from_bits(sign | ((magnitude << 13) + (112u << 23)));
  // Subnormal: magnitude * 2^-24.
  const float value = static_cast<float>(static_cast<int32_t>(magnitude)) * 5.9604644775390625e-8f;
  return sign ? -value : value;
}

inline uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// Nearest even; NaN stays NaN.
inline uint16_t bfloat16_from_float(float value) {
  const uint32_t bits = bits_of(value);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1)) >> 16);
}

inline uint16_t half_from_float(float value) {
  const uint32_t bits = bits_of(value), magnitude = bits & 0x7FFFFFFFu;
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  if (magnitude > 0x7F800000u) return static_cast<uint16_t>(sign | 0x7E00u);
  if (magnitude >= 0x477FF000u) return static_cast<uint16_t>(sign | 0x7C00u);  // 65520 and more
  if (magnitude < 0x38800000u) {
    // Subnormal: in 0.5 + x the last bit stands for 2^-24.
    const uint32_t units = bits_of(float_from_bits(magnitude) + 0.5f) - 0x3F000000u;
    return static_cast<uint16_t>(sign | units);
  }
  return static_cast<uint16_t>(sign |
                               (magnitude - (112u << 23) + 0xFFFu + (magnitude >> 13 & 1)) >> 13);
}

inline float load_element(const void* data, int64_t offset, Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat32:
      return static_cast<const float*>(data)[offset];
    case Dtype::kBFloat16:
      return float_from_bits(static_cast<uint32_t>(static_cast<const uint16_t*>(data)[offset])
                             << 16);
    default:
      return float_from_half(static_cast<const uint16_t*>(data)[offset]);
  }
}

// Row `row` as contiguous float32: a pointer into the matrix if possible, else a copy in `buffer`
// (dim floats).
inline const float* row_as_float(const Rows& rows, int64_t row, int64_t dim, float* buffer) {
  const int64_t start = row * rows.stride_row;
  if (rows.dtype == Dtype::kFloat32) {
    const float* source = static_cast<const float*>(rows.data) + start;
    if (rows.stride_col == 1) return source;
    for (int64_t d = 0; d < dim; ++d) buffer[d] = source[d * rows.stride_col];
    return buffer;
  }
  for (int64_t d = 0; d < dim; ++d) {
    buffer[d] = load_element(rows.data, start + d * rows.stride_col, rows.dtype);
  }
  return buffer;
}

}  // namespace
}  // namespace vqvae2_fast::cpu
