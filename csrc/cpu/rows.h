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

inline uint32_t bits_of(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof(bits));
  return bits;
}

// The conversions choose between integers and add floats unconditionally, so that compilers make
// vectors of loops over them.

inline uint32_t mask_of(bool condition) { return 0u - static_cast<uint32_t>(condition); }

// IEEE half to float; exact, subnormals and NaN included.
inline float float_from_half(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7FFFu;
  // A subnormal gets the exponent of the least normal one, 2^-14, which is subtracted again.
  const uint32_t least = magnitude < 0x0400u ? 113u << 23 : 0u;
  const uint32_t raised = (magnitude << 13) + (least != 0 ? 113u << 23 : 112u << 23);
  const uint32_t finite = bits_of(float_from_bits(raised) - float_from_bits(least));
  const uint32_t not_finite = magnitude >= 0x7C00u ? 0x7F800000u : 0u;
  return float_from_bits(sign | finite | not_finite);
}

// Nearest even; NaN stays NaN.
inline uint16_t bfloat16_from_float(float value) {
  const uint32_t bits = bits_of(value);
  const uint32_t nan = bits >> 16 | 0x40u;
  const uint32_t rounded = (bits + 0x7FFFu + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>((bits & 0x7FFFFFFFu) > 0x7F800000u ? nan : rounded);
}

// Nearest even; NaN stays NaN.
inline uint16_t half_from_float(float value) {
  const uint32_t bits = bits_of(value), magnitude = bits & 0x7FFFFFFFu;
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t is_subnormal = mask_of(magnitude < 0x38800000u);
  const uint32_t is_infinite = mask_of(magnitude >= 0x477FF000u);  // 65520 and more
  const uint32_t is_nan = mask_of(magnitude > 0x7F800000u);
  // In 0.5 + x the last bit stands for 2^-24, the least half; 0 for others.
  const uint32_t subnormal =
      bits_of(float_from_bits(magnitude & is_subnormal) + 0.5f) - 0x3F000000u;
  const uint32_t normal = (magnitude - (112u << 23) + 0xFFFu + (magnitude >> 13 & 1)) >> 13;
  const uint32_t finite = subnormal + (normal & ~is_subnormal);
  const uint32_t not_finite = 0x7C00u | (is_nan & 0x0200u);
  return static_cast<uint16_t>(sign | (finite & ~is_infinite) | (not_finite & is_infinite));
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

// `count` elements of a row from column `first` on as contiguous float32: a pointer into the matrix
// if possible, else a copy in `buffer`.
inline const float* part_as_float(const Rows& rows, int64_t row, int64_t first, int64_t count,
                                  float* buffer) {
  const int64_t start = row * rows.stride_row + first * rows.stride_col;
  if (rows.dtype == Dtype::kFloat32) {
    const float* source = static_cast<const float*>(rows.data) + start;
    if (rows.stride_col == 1) return source;
    for (int64_t i = 0; i < count; ++i) buffer[i] = source[i * rows.stride_col];
    return buffer;
  }
  if (rows.stride_col != 1) {
    for (int64_t i = 0; i < count; ++i) {
      buffer[i] = load_element(rows.data, start + i * rows.stride_col, rows.dtype);
    }
    return buffer;
  }
  const uint16_t* source = static_cast<const uint16_t*>(rows.data) + start;
  if (rows.dtype == Dtype::kBFloat16) {
    for (int64_t i = 0; i < count; ++i) {
      buffer[i] = float_from_bits(static_cast<uint32_t>(source[i]) << 16);
    }
  } else {
    for (int64_t i = 0; i < count; ++i) buffer[i] = float_from_half(source[i]);
  }
  return buffer;
}

// The whole row.
inline const float* row_as_float(const Rows& rows, int64_t row, int64_t dim, float* buffer) {
  return part_as_float(rows, row, 0, dim, buffer);
}

// Rounds `count` numbers to a contiguous result, from its element `start` on.
inline void store_numbers(const float* numbers, int64_t count, Dtype dtype, void* result,
                          int64_t start) {
  if (dtype == Dtype::kFloat32) {
    float* out = static_cast<float*>(result) + start;
    for (int64_t i = 0; i < count; ++i) out[i] = numbers[i];
    return;
  }
  uint16_t* out = static_cast<uint16_t*>(result) + start;
  if (dtype == Dtype::kBFloat16) {
    for (int64_t i = 0; i < count; ++i) out[i] = bfloat16_from_float(numbers[i]);
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = half_from_float(numbers[i]);
  }
}

}  // namespace
}  // namespace vqvae2_fast::cpu
