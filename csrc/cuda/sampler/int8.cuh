// Engine `cuda_w8a8` in the pixel phase: weights and inputs of int8, as
// vqvae2_fast/sampling/quantized.py defines them. Sums are of int32, exact in any order, and what
// follows them is rounded step by step, so that the bits are those of engine `cpu_w8a8`.
#pragma once

#include <type_traits>

#include "../../common/counter_noise.h"
#include "math.cuh"
#include "places.cuh"
#include "product.cuh"

namespace vqvae2_fast::cuda::sampler {

// A weight of 1 byte.
struct Int8 {
  int8_t value;
};

template <typename Weight>
constexpr bool kIsInt8 = std::is_same_v<Weight, Int8>;

// What the inputs of a product are in shared memory, and the sums of a unit.
template <typename Weight>
using InputOf = std::conditional_t<kIsInt8<Weight>, int8_t, float>;
template <typename Weight>
using SumOf = std::conditional_t<kIsInt8<Weight>, int2, float2>;

// clamp(round(x / scale), -127, 127), ties to even, in the lowest byte. NaN and infinity are told
// as logits that are too large, because a byte cannot carry them there.
__device__ __forceinline__ uint32_t quantized(const Network& net, Place at, float x, float scale,
                                              bool counts = true) {
  if (!(x - x == 0.0f)) note_invalid(net, at);
  const float quotient = x / scale;
  // Up to 127.5 rounding gives 127, as clamping does.
  if (counts && fabsf(quotient) > 127.5f) note_clamped(net, at);
  // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
  const float clamped = fminf(fmaxf(quotient, -127.0f), 127.0f);
  return __float_as_uint(VQ_ADD(clamped, 12582912.0f)) & 0xFFu;
}

// Puts ELU(x), an input of a layer's convolution, into the ring.
template <typename Weight>
__device__ __forceinline__ void put_activated(const Network& net, const Ring& ring, int layer,
                                              Place at, int c, float x) {
  const int64_t index = ring_index(net, ring, layer, at.n, at.i, at.j) + c;
  const float value = elu(x);
  if constexpr (kIsInt8<Weight>) {
    const float scale = ring.scales[layer * ring.channels + c];
    reinterpret_cast<uint8_t*>(ring.values)[index] =
        static_cast<uint8_t>(quantized(net, at, value, scale));
  } else {
    ring.values[index] = value;
  }
}

// `stage_inputs` of pixel_phase.cuh for int8. Those of convolutions are int8 in the rings; others
// are rounded here, by the scales before those of the outputs.
template <bool kWindow>
__device__ __forceinline__ void stage_inputs(const Network& net, const Work& work,
                                             const Places<kWindow>& places, int first, int count,
                                             int8_t* buffer) {
  const Operation& op = work.operation;
  const int padded = op.padded_inputs, step = blockDim.x;
  if (op.input_slot != 0) {
    constexpr int kCopy = 16;
    const int8_t* inputs =
        reinterpret_cast<const int8_t*>(op.input) + places.i % net.slots * op.input_slot;
    const int in_row = padded / kCopy, items = count * in_row;
    for (int item = threadIdx.x; item < items; item += step) {
      const int k = item % in_row * kCopy;
      const Place at = places.at(first + item / in_row);
      const bool valid = k < op.inputs && on_map<kWindow>(at);
      const int8_t* from = inputs;
      if (valid) from += at.n * op.input_row + at.j * op.input_column + k;
      copy_async_or_zero<kCopy>(buffer + kCopy * item, from, valid);
    }
    return;
  }
  // Several blocks round the same inputs; one counts them.
  const bool counts = work.first_unit == 0;
  const int in_row = padded / kGroup;
  for (int item = threadIdx.x; item < count * in_row; item += step) {
    const int k = item % in_row * kGroup, left = op.inputs - k;
    const Place at = places.at(first + item / in_row);
    uint32_t bytes = 0;
    if (left > 0 && on_map<kWindow>(at)) {
      const float* from = op.input + static_cast<int64_t>(at.r) * op.input_row + k;
      float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
      if (op.by_four) {
        x = fresh(reinterpret_cast<const float4*>(from));
      } else {
        x.x = fresh(from);
        if (left > 1) x.y = fresh(from + 1);
        if (left > 2) x.z = fresh(from + 2);
        if (left > 3) x.w = fresh(from + 3);
      }
      const float4 scale = *reinterpret_cast<const float4*>(op.scales + k);
      bytes = quantized(net, at, x.x, scale.x, counts);
      if (left > 1) bytes |= quantized(net, at, x.y, scale.y, counts) << 8;
      if (left > 2) bytes |= quantized(net, at, x.z, scale.z, counts) << 16;
      if (left > 3) bytes |= quantized(net, at, x.w, scale.w, counts) << 24;
    }
    *reinterpret_cast<uint32_t*>(buffer + kGroup * item) = bytes;
  }
}

__device__ __forceinline__ void add_dots(int4 v, int4 w, int4 a, int2& sum) {
  sum.x = __dp4a(v.x, a.x, sum.x);
  sum.y = __dp4a(w.x, a.x, sum.y);
  sum.x = __dp4a(v.y, a.y, sum.x);
  sum.y = __dp4a(w.y, a.y, sum.y);
  sum.x = __dp4a(v.z, a.z, sum.x);
  sum.y = __dp4a(w.z, a.z, sum.y);
  sum.x = __dp4a(v.w, a.w, sum.x);
  sum.y = __dp4a(w.w, a.w, sum.y);
}

// A lane's part of the sums of ROWS network rows, as `add_products` of product.cuh. A unit is its
// first column of int8 and then its second.
template <int ROWS>
__device__ __forceinline__ void add_products(const Int8* unit, const int8_t* inputs, int stride,
                                             int rows, int padded_inputs, int lane,
                                             int2 (&sums)[ROWS]) {
  constexpr int kBytes = sizeof(int4), kChunk = kLanes * kBytes;
#pragma unroll
  for (int r = 0; r < ROWS; ++r) sums[r] = make_int2(0, 0);
  const int whole = padded_inputs / kChunk * kChunk;
  for (int k = kBytes * lane; k < whole; k += kChunk) {
    const int4 v = *reinterpret_cast<const int4*>(unit + k);
    const int4 w = *reinterpret_cast<const int4*>(unit + padded_inputs + k);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      add_dots(v, w, *reinterpret_cast<const int4*>(inputs + min(r, rows - 1) * stride + k),
               sums[r]);
    }
  }
  for (int k = whole + kGroup * lane; k < padded_inputs; k += kLanes * kGroup) {
    const int v = *reinterpret_cast<const int*>(unit + k);
    const int w = *reinterpret_cast<const int*>(unit + padded_inputs + k);
#pragma unroll
    for (int r = 0; r < ROWS; ++r) {
      const int a = *reinterpret_cast<const int*>(inputs + min(r, rows - 1) * stride + k);
      sums[r].x = __dp4a(v, a, sums[r].x);
      sums[r].y = __dp4a(w, a, sums[r].y);
    }
  }
}

}  // namespace vqvae2_fast::cuda::sampler
