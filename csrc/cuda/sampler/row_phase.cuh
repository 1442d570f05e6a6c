// Row phase: the part of row i's outputs that comes from the rows above, for all layers and columns
// at once, as matrix products [N * W, taps * inputs] x [taps * inputs, outputs] that read the rings
// in place.
//
// One block computes one tile of the result, and adds its inputs in ascending order, 128 at a time:
// sums of 128 are added to the total in float32. So a sum does not depend on the batch, and its
// error is not that of one long chain.
#pragma once

#include <type_traits>

#include "memory.cuh"
#include "product.cuh"
#include "row_product.h"

namespace vqvae2_fast::cuda::sampler {

constexpr int kTileRows = 64, kTileColumns = 64, kTileWords = 16;
constexpr int kRowThreads = 128;
// Words of a row of a tile in shared memory: no two of a warp's reads meet in one bank.
constexpr int kRowStride = kTileWords + 4, kColumnStride = kTileColumns + 8;
constexpr int kBlockInputs = 128;

// What a 32-bit word of a tile holds, and the product of 16 x 8 words by 8 x 8 words.
struct Float32 {
  static constexpr int kInputs = 1;
  static __device__ __forceinline__ uint32_t word(float a, float) { return __float_as_uint(a); }
};

struct TensorFloat32 {
  static constexpr int kInputs = 1;
  static __device__ __forceinline__ uint32_t word(float a, float) { return to_tf32(a); }
};

struct BFloat16Pair {
  static constexpr int kInputs = 2;
  static __device__ __forceinline__ uint32_t word(float a, float b) { return pack_bf16x2(a, b); }
};

// Where a thread's words of the next tiles wait while the current ones are multiplied.
struct NextTiles {
  uint32_t rows[kTileRows * kTileWords / kRowThreads];
  uint32_t columns[kTileWords * kTileColumns / kRowThreads];
};

// Loads the words of segment s from first_word on, for the kTileRows network rows and columns from
// `row` on and for the weights' outputs from `column` on. They are zero outside.
template <typename Mode>
__device__ __forceinline__ void load_tiles(const RowProduct& p, int layer, int row, int column,
                                           int segment, int first_word, NextTiles& next) {
  const float* input = p.input + layer * p.input_layer + p.segments[segment];
  const int words = (p.inputs + Mode::kInputs - 1) / Mode::kInputs;
#pragma unroll
  for (int t = 0; t < kTileRows * kTileWords / kRowThreads; ++t) {
    const int item = t * kRowThreads + threadIdx.x;
    const int word = first_word + item % kTileWords, m = row + item / kTileWords;
    float value[2] = {0.0f, 0.0f};
    if (m < p.rows) {
      const float* at = input + m / p.width * p.input_sample + m % p.width * p.input_column;
#pragma unroll
      for (int k = 0; k < Mode::kInputs; ++k) {
        if (word * Mode::kInputs + k < p.inputs) value[k] = at[word * Mode::kInputs + k];
      }
    }
    next.rows[t] = Mode::word(value[0], value[1]);
  }
  const uint32_t* weights =
      static_cast<const uint32_t*>(p.weights) +
      (static_cast<int64_t>(layer) * p.all_segments + p.first_segment + segment) * words *
          p.outputs;
#pragma unroll
  for (int t = 0; t < kTileWords * kTileColumns / kRowThreads; ++t) {
    const int item = t * kRowThreads + threadIdx.x;
    const int word = first_word + item / kTileColumns, o = column + item % kTileColumns;
    uint32_t bits = 0;
    if (word < words && o < p.outputs) bits = weights[static_cast<int64_t>(word) * p.outputs + o];
    if constexpr (Mode::kInputs == 1) bits = Mode::word(__uint_as_float(bits), 0.0f);
    next.columns[t] = bits;
  }
}

__device__ __forceinline__ void store_tiles(const NextTiles& next, uint32_t* rows,
                                            uint32_t* columns) {
#pragma unroll
  for (int t = 0; t < kTileRows * kTileWords / kRowThreads; ++t) {
    const int item = t * kRowThreads + threadIdx.x;
    rows[item / kTileWords * kRowStride + item % kTileWords] = next.rows[t];
  }
#pragma unroll
  for (int t = 0; t < kTileWords * kTileColumns / kRowThreads; ++t) {
    const int item = t * kRowThreads + threadIdx.x;
    columns[item / kTileColumns * kColumnStride + item % kTileColumns] = next.columns[t];
  }
}

// A warp's 32 x 32 part of a tile: 2 x 4 products of 16 x 8, laid out as the tensor cores do.
struct Sums {
  float at[2][4][4];
};

template <typename Mode>
__device__ __forceinline__ void multiply_tiles(const uint32_t* rows, const uint32_t* columns,
                                               Sums& sums) {
  const int lane = threadIdx.x % kLanes, group = lane / 4, quad = lane % 4;
#pragma unroll
  for (int word = 0; word < kTileWords; word += 8) {
    if constexpr (std::is_same_v<Mode, Float32>) {
#pragma unroll
      for (int k = word; k < word + 8; ++k) {
        float a[4];
        float2 b[4];
#pragma unroll
        for (int r = 0; r < 4; ++r) {
          a[r] = __uint_as_float(rows[(8 * r + group) * kRowStride + k]);
        }
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          b[c] = *reinterpret_cast<const float2*>(columns + k * kColumnStride + 8 * c + 2 * quad);
        }
#pragma unroll
        for (int r = 0; r < 4; ++r) {
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            float* sum = sums.at[r / 2][c] + r % 2 * 2;
            sum[0] = fmaf(a[r], b[c].x, sum[0]);
            sum[1] = fmaf(a[r], b[c].y, sum[1]);
          }
        }
      }
    } else {
      uint32_t a[2][4], b[4][2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const uint32_t* at = rows + (16 * r + group) * kRowStride + word + quad;
        a[r][0] = at[0];
        a[r][1] = at[8 * kRowStride];
        a[r][2] = at[4];
        a[r][3] = at[8 * kRowStride + 4];
      }
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const uint32_t* at = columns + (word + quad) * kColumnStride + 8 * c + group;
        b[c][0] = at[0];
        b[c][1] = at[4 * kColumnStride];
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          if constexpr (Mode::kInputs == 2) {
            mma_bf16(sums.at[r][c], a[r], b[c]);
          } else {
            mma_tf32(sums.at[r][c], a[r], b[c]);
          }
        }
      }
    }
  }
}

// What the sum of output o begins with: bias, class, condition.
__device__ __forceinline__ float initial_of(const RowProduct& p, int layer, int n, int j, int o) {
  float value = p.bias ? p.bias[static_cast<int64_t>(layer) * p.outputs + o] : 0.0f;
  if (p.classes) {
    // The rows after those of the batch are without a class.
    const int64_t label = n < p.batch ? p.labels[n] : p.num_classes;
    value += p.classes[(layer * (p.num_classes + 1) + label) * p.outputs + o];
  }
  if (p.condition) {
    const int64_t row = (static_cast<int64_t>(layer) * p.batch + n % p.batch) * p.condition_width;
    value += p.condition[(row + j / p.condition_scale) * p.outputs + o];
  }
  return value;
}

template <typename Mode>
__global__ void __launch_bounds__(kRowThreads)
    row_phase_kernel(const RowProduct first, const RowProduct second) {
  const bool is_second = blockIdx.z >= static_cast<unsigned>(first.layers);
  const RowProduct& p = is_second ? second : first;
  const int layer = blockIdx.z - (is_second ? first.layers : 0);
  const int row = blockIdx.x * kTileRows, column = blockIdx.y * kTileColumns;
  if (row >= p.rows || column >= p.outputs) return;
  VQ_SHARED(uint32_t, row_tiles, [2][kTileRows * kRowStride]);
  VQ_SHARED(uint32_t, column_tiles, [2][kTileWords * kColumnStride]);
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 32;

  Sums total = {}, sums = {};
  const int words = (p.inputs + Mode::kInputs - 1) / Mode::kInputs;
  const int steps_of_segment = (words + kTileWords - 1) / kTileWords;
  const int steps = p.num_segments * steps_of_segment;
  constexpr int kStepsOfBlock = kBlockInputs / (kTileWords * Mode::kInputs);
  NextTiles next;
  if (steps > 0) {
    load_tiles<Mode>(p, layer, row, column, 0, 0, next);
    store_tiles(next, row_tiles[0], column_tiles[0]);
  }
  __syncthreads();
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) {
      load_tiles<Mode>(p, layer, row, column, (step + 1) / steps_of_segment,
                       (step + 1) % steps_of_segment * kTileWords, next);
    }
    multiply_tiles<Mode>(row_tiles[step % 2] + warp_row * kRowStride,
                         column_tiles[step % 2] + warp_column, sums);
    if (step + 1 < steps) {
      store_tiles(next, row_tiles[(step + 1) % 2], column_tiles[(step + 1) % 2]);
    }
    if ((step + 1) % kStepsOfBlock == 0 || step + 1 == steps) {
#pragma unroll
      for (int s = 0; s < 32; ++s) {
        float& sum = sums.at[s / 16][s / 4 % 4][s % 4];
        total.at[s / 16][s / 4 % 4][s % 4] += sum;
        sum = 0.0f;
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int s = 0; s < 32; ++s) {
    const int m = row + warp_row + s / 16 * 16 + lane / 4 + s % 4 / 2 * 8;
    const int o = column + warp_column + s / 4 % 4 * 8 + lane % 4 * 2 + s % 2;
    if (m >= p.rows || o >= p.outputs) continue;
    const int n = m / p.width, j = m % p.width;
    p.output[(static_cast<int64_t>(layer) * p.rows + m) * p.outputs + o] =
        initial_of(p, layer, n, j, o) + total.at[s / 16][s / 4 % 4][s % 4];
  }
}

// The stem's sums over codes of rows above, [B, W, C]; with windows also the row's first guesses:
// the known codes, else those above.
constexpr int kStemThreads = 256;

__global__ void __launch_bounds__(kStemThreads) stem_row_kernel(const Network net, int i) {
  const int64_t count = static_cast<int64_t>(net.batch) * net.width * net.channels;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; item < count;
       item += step) {
    const int c = item % net.channels;
    const int j = item / net.channels % net.width;
    const int64_t sample = item / net.channels / net.width;
    int64_t* codes = net.codes + sample * net.height * net.width;
    float sum = net.stem_bias[(static_cast<int64_t>(i) * net.width + j) * net.channels + c];
    for (int t = 0; t < net.num_stem_above; ++t) {
      const int row = i + net.stem_above_taps[2 * t], column = j + net.stem_above_taps[2 * t + 1];
      if (row < 0 || column < 0 || column >= net.width) continue;
      const int64_t entry =
          static_cast<int64_t>(t) * net.num_embeddings + codes[row * net.width + column];
      sum += net.stem_above[entry * net.channels + c];
    }
    net.stem_row[item] = sum;
    if (net.window == 1 || c > 0) continue;
    const int position = i * net.width + j;
    const int64_t known = net.known ? net.known[sample * net.height * net.width + position] : -1;
    codes[position] = known >= 0 ? known : i > 0 ? codes[position - net.width] : 0;
  }
}

}  // namespace vqvae2_fast::cuda::sampler
