// Row phase of engine `cuda_w8a8`: the products of row_phase.cuh with weights and inputs of int8,
// on tensor cores. Sums are of int32, exact in any order. The pixel phase continues them, so bias,
// class and condition are stored beside them, unadded.
#pragma once

#include "row_phase.cuh"

namespace vqvae2_fast::cuda::sampler {

constexpr int kByteStride = kByteTile + 16;  // no two of a warp's reads meet in one bank
constexpr int kByteThreads = 128;

// Begins to copy 64 rows of 64 bytes to a tile: of network rows and columns from `row` on, or of
// the weights of outputs from `column` on. They are zero outside.
__device__ __forceinline__ void copy_byte_tiles(const RowProduct& p, int layer, int row, int column,
                                                int segment, int first_input, int8_t* rows,
                                                int8_t* columns) {
  constexpr int kCopy = 16, kCopies = kByteTile / kCopy;  // of a row
  const int8_t* input =
      reinterpret_cast<const int8_t*>(p.input) + layer * p.input_layer + p.segments[segment];
  const int8_t* weights =
      static_cast<const int8_t*>(p.weights) +
      (static_cast<int64_t>(layer) * p.all_segments + p.first_segment + segment) * p.outputs *
          p.inputs;
#pragma unroll
  for (int t = 0; t < kByteTile * kCopies / kByteThreads; ++t) {
    const int item = t * kByteThreads + threadIdx.x, in_tile = item / kCopies;
    const int at = item % kCopies * kCopy, k = first_input + at;
    const int m = row + in_tile, o = column + in_tile;
    const bool valid = k < p.inputs;
    const int8_t* from = input;
    if (valid && m < p.rows) {
      from += m / p.width * p.input_sample + m % p.width * p.input_column + k;
    }
    copy_async_or_zero<kCopy>(rows + in_tile * kByteStride + at, from, valid && m < p.rows);
    from = weights;
    if (valid && o < p.outputs) from += static_cast<int64_t>(o) * p.inputs + k;
    copy_async_or_zero<kCopy>(columns + in_tile * kByteStride + at, from, valid && o < p.outputs);
  }
  copy_async_commit();
}

// A warp's 32 x 32 part of a tile: 2 x 4 products of 16 x 8.
struct ByteSums {
  int32_t at[2][4][4];
};

__device__ __forceinline__ void multiply_byte_tiles(const int8_t* rows, const int8_t* columns,
                                                    ByteSums& sums) {
  const int lane = threadIdx.x % kLanes, group = lane / 4, quad = lane % 4;
  const auto word = [](const int8_t* at) { return *reinterpret_cast<const uint32_t*>(at); };
#pragma unroll
  for (int k = 0; k < kByteTile; k += 32) {
    uint32_t a[2][4], b[4][2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int8_t* at = rows + (16 * r + group) * kByteStride + k + 4 * quad;
      a[r][0] = word(at);
      a[r][1] = word(at + 8 * kByteStride);
      a[r][2] = word(at + 16);
      a[r][3] = word(at + 8 * kByteStride + 16);
    }
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int8_t* at = columns + (8 * c + group) * kByteStride + k + 4 * quad;
      b[c][0] = word(at);
      b[c][1] = word(at + 16);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int c = 0; c < 4; ++c) mma_s8(sums.at[r][c], a[r], b[c]);
    }
  }
}

// One block computes one tile of the result.
__global__ void __launch_bounds__(kByteThreads)
    row_phase_int8_kernel(const RowProduct first, const RowProduct second) {
  const bool is_second = blockIdx.z >= static_cast<unsigned>(first.layers);
  const RowProduct& p = is_second ? second : first;
  const int layer = blockIdx.z - (is_second ? first.layers : 0);
  const int row = blockIdx.x * kByteTile, column = blockIdx.y * kByteTile;
  if (row >= p.rows || column >= p.outputs) return;
  VQ_SHARED(int4, row_tiles, [2][kByteTile * kByteStride / sizeof(int4)]);
  VQ_SHARED(int4, column_tiles, [2][kByteTile * kByteStride / sizeof(int4)]);
  const auto bytes = [](int4* tile) { return reinterpret_cast<int8_t*>(tile); };
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes;
  const int warp_row = warp / 2 * 32, warp_column = warp % 2 * 32;

  ByteSums sums = {};
  const int steps_of_segment = (p.inputs + kByteTile - 1) / kByteTile;
  const int steps = p.num_segments * steps_of_segment;
  const auto copy = [&](int step) {
    copy_byte_tiles(p, layer, row, column, step / steps_of_segment,
                    step % steps_of_segment * kByteTile, bytes(row_tiles[step % 2]),
                    bytes(column_tiles[step % 2]));
  };
  if (steps > 0) copy(0);
  for (int step = 0; step < steps; ++step) {
    copy_async_wait<0>();
    __syncthreads();  // this step's tiles have arrived, and the other ones are no longer read
    if (step + 1 < steps) copy(step + 1);
    multiply_byte_tiles(bytes(row_tiles[step % 2]) + warp_row * kByteStride,
                        bytes(column_tiles[step % 2]) + warp_column * kByteStride, sums);
  }
#pragma unroll
  for (int s = 0; s < 32; s += 2) {
    const int m = row + warp_row + s / 16 * 16 + lane / 4 + s % 4 / 2 * 8;
    const int o = column + warp_column + s / 4 % 4 * 8 + lane % 4 * 2;
    if (m >= p.rows || o >= p.outputs) continue;
    const InitialRow initial = initial_row(p, layer, m);
    const int32_t* sum = &sums.at[s / 16][s / 4 % 4][s % 4];
    *reinterpret_cast<int4*>(
        p.output + ((static_cast<int64_t>(layer) * p.rows + m) * p.outputs + o) * kInitialWords) =
        make_int4(sum[0], sum[1], __float_as_int(initial.at(o)), __float_as_int(initial.at(o + 1)));
  }
}

}  // namespace vqvae2_fast::cuda::sampler
