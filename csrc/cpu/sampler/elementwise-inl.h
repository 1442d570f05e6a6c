// Elementwise layers and one head of attention. Include after a simd/ header, inside a level file.
#pragma once

#include "../../common/bounds.h"
#include "../simd/math-inl.h"
#include "product-inl.h"

namespace vqvae2_fast::cpu::sampler {
namespace {

// ELU(x), or NaN for x beyond the bound on what is multiplied.
inline Vec bounded_elu_of(Vec x) {
  const Vec excess = x - Vec::broadcast(kSamplingBound);
  return excess.where_positive(Vec::broadcast(kBeyondBound), elu_of(x));
}

inline void elu(const float* x, float* y, int64_t count) {
  for (int64_t i = 0; i < count; i += Vec::kLanes) bounded_elu_of(Vec::load(x + i)).store(y + i);
}

template <bool ACTIVATES>
inline int64_t quantize(const float* x, const float* scales, uint8_t* q, int64_t count) {
  // Adding 1.5 * 2^23 rounds to an integer, ties to even, and leaves it in the low bits.
  const Vec magic = Vec::broadcast(12582912.0f), bias = Vec::broadcast(128.0f);
  const Vec largest = Vec::broadcast(127.0f), least = Vec::broadcast(-127.0f);
  // Below this, rounding gives 127 by itself.
  const Vec last = Vec::broadcast(127.5f), zero = Vec::broadcast(0.0f), one = Vec::broadcast(1.0f);
  Vec clamped = zero, invalid = zero;  // invalid stays zero without NaN and infinity
  for (int64_t i = 0; i < count; i += Vec::kLanes) {
    Vec value = Vec::load(x + i);
    if constexpr (ACTIVATES) value = bounded_elu_of(value);
    invalid = invalid + (value - value);
    value = value / Vec::load(scales + i);
    const Vec magnitude = value.at_least(zero - value);
    clamped = clamped + (magnitude - last).where_positive(one, zero);
    value = value.at_most(largest).at_least(least);
    ((value + magic) + bias).store_low_bytes(q + i);
  }
  if (lane_sum(invalid) != 0.0f) return -1;
  return static_cast<int64_t>(lane_sum(clamped));
}

inline void dequantize(const int32_t* sums, const float* scales, const float* initial, float* y,
                       int64_t count) {
  for (int64_t i = 0; i < count; i += Vec::kLanes) {
    (QuadSum::load(sums + i).to_float() * Vec::load(scales + i) + Vec::load(initial + i))
        .store(y + i);
  }
}

inline void add(const float* x, const float* y, float* out, int64_t count) {
  for (int64_t i = 0; i < count; i += Vec::kLanes) {
    (Vec::load(x + i) + Vec::load(y + i)).store(out + i);
  }
}

inline void gate(const float* gates, int64_t panels, const float* residual, float* out,
                 float* activated) {
  for (int64_t panel = 0; panel < panels; ++panel) {
    for (int64_t i = 0; i < kHalfPanel; i += Vec::kLanes) {
      const float* values = gates + panel * kPanel + i;
      const int64_t at = panel * kHalfPanel + i;
      Vec y = Vec::load(values) * sigmoid(Vec::load(values + kHalfPanel));
      if (residual) y = Vec::load(residual + at) + y;
      y.store(out + at);
      if (activated) bounded_elu_of(y).store(activated + at);
    }
  }
}

inline void exp_shifted(const float* x, float shift, float* y, int64_t count) {
  const Vec by = Vec::broadcast(shift);
  for (int64_t i = 0; i < count; i += Vec::kLanes) {
    exponential(Vec::load(x + i) - by).store(y + i);
  }
}

// GCC's vectors of 8, which every level has, if need be in parts.
inline uint32_t frequencies(const float* x, double total, uint32_t* frequencies, int64_t count) {
  typedef float Floats __attribute__((vector_size(32), aligned(4)));
  typedef double Doubles __attribute__((vector_size(64)));
  typedef int32_t Integers __attribute__((vector_size(32), aligned(4)));
  Doubles sums = {};
  for (int64_t i = 0; i < count; i += 8) {
    sums += __builtin_convertvector(*reinterpret_cast<const Floats*>(x + i), Doubles);
  }
  const double sum =
      ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
  const double scale = total / sum;
  Integers given = {};
  for (int64_t i = 0; i < count; i += 8) {
    const Doubles wide = __builtin_convertvector(*reinterpret_cast<const Floats*>(x + i), Doubles);
    const Integers whole = __builtin_convertvector(wide * scale, Integers) + 1;
    *reinterpret_cast<Integers*>(frequencies + i) = whole;
    given += whole;
  }
  uint32_t all = 0;
  for (int i = 0; i < 8; ++i) all += static_cast<uint32_t>(given[i]);
  return all;
}

// A sum is kept in kHalfPanel lanes at every level, then folded in one order.
inline float fold_lanes(float* lanes) {
  for (int64_t half = kHalfPanel / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

inline float sum_of(const float* x, int64_t count) {
  float lanes[kHalfPanel];
  for (int64_t i = 0; i < kHalfPanel; i += Vec::kLanes) {
    Vec sum = Vec::broadcast(0.0f);
    for (int64_t at = i; at < count; at += kHalfPanel) sum = sum + Vec::load(x + at);
    sum.store(lanes + i);
  }
  return fold_lanes(lanes);
}

inline float largest_of(const float* x, int64_t count) {
  float lanes[kHalfPanel];
  for (int64_t i = 0; i < kHalfPanel; i += Vec::kLanes) {
    Vec largest = Vec::load(x + i);
    for (int64_t at = i; at < count; at += kHalfPanel)
      largest = largest.at_least(Vec::load(x + at));
    largest.store(lanes + i);
  }
  float largest = lanes[0];
  for (int64_t i = 1; i < kHalfPanel; ++i) largest = lanes[i] > largest ? lanes[i] : largest;
  return largest;
}

// Positions whose values are summed separately, because a sum over positions is a chain, and one
// head may be only a single vector wide.
constexpr int64_t kChains = 4;
// How far ahead of their use values are prefetched, in floats.
constexpr int64_t kValuesAhead = 1024;

inline void attend(const AttentionHead& head) {
  const int64_t chunks = (head.positions + kPanel - 1) / kPanel;
  float* weights = head.scores;
  for (int64_t p = 0; p < chunks * kPanel; ++p) weights[p] = 0.0f;
  product({.a = head.query,
           .weights = head.keys,
           .panel_stride = head.dim * kPanel,
           .panels = chunks,
           .inputs = head.dim,
           .initial = weights,
           .c = weights});
  // Positions beyond the last have no weight: their exponential is the smallest, and is then set to
  // zero.
  const float lowest = -3.0e38f;
  for (int64_t p = head.positions; p < chunks * kPanel; ++p) weights[p] = lowest;
  exp_shifted(weights, largest_of(weights, chunks * kPanel), weights, chunks * kPanel);
  for (int64_t p = head.positions; p < chunks * kPanel; ++p) weights[p] = 0.0f;
  const Vec scale = Vec::broadcast(1.0f / sum_of(weights, chunks * kPanel));

  const int64_t stride = head.value_width;
  const int64_t ahead = head.next_keys - head.values;
  for (int64_t i = 0; i < stride; i += Vec::kLanes) {
    Vec sums[kChains];
    for (int64_t s = 0; s < kChains; ++s) sums[s] = Vec::broadcast(0.0f);
    int64_t p = 0;
    for (; p + kChains <= head.positions; p += kChains) {
      for (int64_t s = 0; s < kChains; ++s) {
        const float* value = head.values + (p + s) * stride + i;
        __builtin_prefetch(value + kValuesAhead);
        __builtin_prefetch(value + ahead);
        sums[s] = sums[s].add_product_fused(Vec::broadcast(weights[p + s]), Vec::load(value));
      }
    }
    for (int64_t s = 0; p < head.positions; ++p, ++s) {
      sums[s] = sums[s].add_product_fused(Vec::broadcast(weights[p]),
                                          Vec::load(head.values + p * stride + i));
    }
    (((sums[0] + sums[1]) + (sums[2] + sums[3])) * scale).store(head.out + i);
  }
}

constexpr Kernels kKernels = {.product = product,
                              .elu = elu,
                              .gate = gate,
                              .quantize = quantize<false>,
                              .quantize_elu = quantize<true>,
                              .dequantize = dequantize,
                              .add = add,
                              .attend = attend,
                              .exp_shifted = exp_shifted,
                              .largest = largest_of,
                              .frequencies = frequencies};

}  // namespace
}  // namespace vqvae2_fast::cpu::sampler
