// Row phase: the part of row i's outputs that comes from the rows above, for all layers and columns
// at once, as matrix products [N * W, taps * inputs] x [taps * inputs, outputs] that read the rings
// in place.
//
// One block computes one tile of the result (row_tiles.h), and adds its inputs in ascending order,
// 128 at a time: sums of 128 are added to the total in float32. So a sum depends neither on the
// batch nor on the tile, and its error is not that of one long chain. Where a tile has fewer parts
// than the block has warps, groups of warps compute different sums of 128, and these are added in
// their order.
#pragma once

#include <type_traits>

#include "row_staging.cuh"

namespace vqvae2_fast::cuda::sampler {

// Chunks of 16 bytes of a column's weights in a slot.
struct Float32 {
  static constexpr int kWeightChunks = 4;
};
struct TensorFloat32 {
  static constexpr int kWeightChunks = 4;
};
struct BFloat16Pair {
  static constexpr int kWeightChunks = 2;
};

template <typename Mode>
__device__ __forceinline__ RowLane row_lane(int lane) {
  return std::is_same_v<Mode, Float32> ? float_lane(lane) : matrix_lane(lane);
}

// A lane's sums of 32 x 8 * kEights outputs, laid out as the tensor cores do: sum e of product
// (r, c) of 16 x 8 is row 16r + group + e / 2 * 8, column 8c + 2 * quad + e % 2.
template <int kEights>
struct Sums {
  float at[2][kEights][4];
};

// Each adds the kStepInputs inputs of a slot. The warp's rows and weights begin at multiples of 32
// rows, which `place` does not tell apart.
template <int kEights>
__device__ __forceinline__ void multiply(Float32, const uint4* rows, const uint4* weights, int lane,
                                         Sums<kEights>& sums) {
#pragma unroll
  for (int chunk = 0; chunk < kChunk4; ++chunk) {
    float4 a[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      a[r] = *reinterpret_cast<const float4*>(rows + input_float_place(lane, chunk) + 8 * r * 4);
    }
#pragma unroll
    for (int n = 0; n < 2 * kEights; ++n) {
      const float4 b = *reinterpret_cast<const float4*>(weights + weight_float_place(lane, chunk) +
                                                        (n / 2 * 8 + n % 2) * 4);
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        float& sum = sums.at[r / 2][n / 2][r % 2 * 2 + n % 2];
        sum = fmaf(a[r].x, b.x, sum);
        sum = fmaf(a[r].y, b.y, sum);
        sum = fmaf(a[r].z, b.z, sum);
        sum = fmaf(a[r].w, b.w, sum);
      }
    }
  }
}

template <int kEights>
__device__ __forceinline__ void multiply(TensorFloat32, const uint4* rows, const uint4* weights,
                                         int lane, Sums<kEights>& sums) {
#pragma unroll
  for (int chunk = 0; chunk < kChunk4; chunk += 2) {
    uint32_t a[2][4];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      load_matrix_x4(a[r], rows + input_matrix_place(lane, chunk) + 16 * r * 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) a[r][i] = to_tf32(__uint_as_float(a[r][i]));
    }
#pragma unroll
    for (int c = 0; c < kEights; c += 2) {
      uint32_t b[4];
      load_matrix_x4(b, weights + weight_matrix_place<4>(lane, chunk) + 8 * c * 4);
#pragma unroll
      for (int i = 0; i < 4; ++i) b[i] = to_tf32(__uint_as_float(b[i]));
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        mma_tf32(sums.at[r][c], a[r], {b[0], b[1]});
        mma_tf32(sums.at[r][c + 1], a[r], {b[2], b[3]});
      }
    }
  }
}

template <int kEights>
__device__ __forceinline__ void multiply(BFloat16Pair, const uint4* rows, const uint4* weights,
                                         int lane, Sums<kEights>& sums) {
  uint32_t a[2][4];
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    // Not by ldmatrix: the inputs are rounded on the way into their fragment.
    const uint4* const at =
        rows + input_pair_place(lane, n % 4 / 2 * 2) + (n / 4 * 16 + n % 2 * 8) * 4;
    const float2 pair = reinterpret_cast<const float2*>(at)[matrix_lane(lane).quad % 2];
    a[n / 4][n % 4] = pack_bf16x2(pair.x, pair.y);
  }
#pragma unroll
  for (int c = 0; c < kEights; c += 2) {
    uint32_t b[4];
    load_matrix_x4(b, weights + weight_matrix_place<2>(lane, 0) + 8 * c * 2);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      mma_bf16(sums.at[r][c], a[r], {b[0], b[1]});
      mma_bf16(sums.at[r][c + 1], a[r], {b[2], b[3]});
    }
  }
}

// Adds the groups' sums to the totals in the order of the groups, and clears them. Group g keeps
// the totals of part g of a lane's sums; the others' parts of its sums go through a slot that
// nobody else uses.
template <typename Tile, int kSlotChunks>
__device__ __forceinline__ void add_sums(uint4* slot, int group, int thread,
                                         Sums<Tile::kWarpColumns / 8>& sums,
                                         float (&totals)[Tile::kWarpColumns / Tile::kGroups]) {
  constexpr int kEights = Tile::kWarpColumns / 8, kGroups = Tile::kGroups;
  constexpr int kPart = Tile::kWarpColumns / kGroups;
  const auto sum = [&](int s) -> float& {
    return sums.at[s / (4 * kEights)][s / 4 % kEights][s % 4];
  };
  if constexpr (kGroups == 1) {
#pragma unroll
    for (int s = 0; s < kPart; ++s) totals[s] += sum(s);
  } else {
    static_assert(kGroups * (kGroups - 1) * kPart / 4 * Tile::kGroupThreads <=
                  kGroups * kSlotChunks);
    float4* const words = reinterpret_cast<float4*>(slot) + thread;
    const auto at = [&](int to, int from, int v) {
      const int pair = to * (kGroups - 1) + from - (from > to);
      return words + (pair * (kPart / 4) + v) * Tile::kGroupThreads;
    };
    float own[kPart];
    __syncthreads();  // the slot is no longer read
#pragma unroll
    for (int to = 0; to < kGroups; ++to) {
#pragma unroll
      for (int v = 0; v < kPart / 4; ++v) {
        const int s = to * kPart + 4 * v;
        if (to == group) {
          own[4 * v] = sum(s), own[4 * v + 1] = sum(s + 1);
          own[4 * v + 2] = sum(s + 2), own[4 * v + 3] = sum(s + 3);
        } else {
          *at(to, group, v) = make_float4(sum(s), sum(s + 1), sum(s + 2), sum(s + 3));
        }
      }
    }
    __syncthreads();  // all groups' sums are there
#pragma unroll
    for (int from = 0; from < kGroups; ++from) {
#pragma unroll
      for (int v = 0; v < kPart / 4; ++v) {
        const float4 four =
            from == group ? make_float4(own[4 * v], own[4 * v + 1], own[4 * v + 2], own[4 * v + 3])
                          : *at(group, from, v);
        totals[4 * v] += four.x;
        totals[4 * v + 1] += four.y;
        totals[4 * v + 2] += four.z;
        totals[4 * v + 3] += four.w;
      }
    }
  }
  sums = {};
}

// What the sums of a row's outputs begin with: bias, class, condition, each null without.
struct InitialRow {
  const float *bias, *classes, *condition;

  __device__ __forceinline__ float at(int o) const {
    float value = bias ? bias[o] : 0.0f;
    if (classes) value += classes[o];
    if (condition) value += condition[o];
    return value;
  }
};

__device__ __forceinline__ InitialRow initial_row(const RowProduct& p, int layer, int m) {
  const int n = m / p.width, j = m % p.width;
  InitialRow row = {p.bias, p.classes, p.condition};
  if (row.bias) row.bias += static_cast<int64_t>(layer) * p.outputs;
  if (row.classes) {
    // The rows after those of the batch are without a class.
    const int64_t label = n < p.batch ? p.labels[n] : p.num_classes;
    row.classes += (static_cast<int64_t>(layer) * p.num_labels + label) * p.outputs;
  }
  if (row.condition) {
    const int64_t of = (static_cast<int64_t>(layer) * p.batch + n % p.batch) * p.condition_width;
    row.condition += (of + j / p.condition_scale) * p.outputs;
  }
  return row;
}

template <typename Mode, typename Tile>
__global__ void __launch_bounds__(kRowThreads)
    row_phase_kernel(const RowProduct first, const RowProduct second) {
  using Copies = RowCopies<Mode, Tile>;
  constexpr int kGroupWarps = Tile::kGroupThreads / kLanes;
  constexpr int kWarpsAcross = Tile::kColumns / Tile::kWarpColumns;
  constexpr int kSlotChunks = Tile::kGroups * Copies::kSlotChunks;
  constexpr int kPart = Tile::kWarpColumns / Tile::kGroups;
  const bool is_second = blockIdx.z >= static_cast<unsigned>(first.layers);
  const RowProduct& p = is_second ? second : first;
  const int layer = blockIdx.z - (is_second ? first.layers : 0);
  const int row = blockIdx.x * Tile::kRows, column = blockIdx.y * Tile::kColumns;
  if (row >= p.rows || column >= p.outputs) return;
  VQ_SHARED(uint4, ring, [kRowSlots * kSlotChunks]);
  const int lane = threadIdx.x % kLanes, warp = threadIdx.x / kLanes % kGroupWarps;
  const int group = threadIdx.x / Tile::kGroupThreads;
  const int thread = threadIdx.x % Tile::kGroupThreads;
  const int warp_row = warp / kWarpsAcross * kWarpRows;
  const int warp_column = warp % kWarpsAcross * Tile::kWarpColumns;

  // Groups take turns of kBlockSteps steps; the first has the most.
  const int steps = p.num_segments * p.steps;
  constexpr int kRoundSteps = Tile::kGroups * kBlockSteps;
  const int whole_rounds = (steps + kRoundSteps - 1) / kRoundSteps - 1;
  const int turns =
      steps > 0 ? whole_rounds * kBlockSteps + min(kBlockSteps, steps - whole_rounds * kRoundSteps)
                : 0;
  Copies copies(p, layer, row, column, group, thread);
  uint4* const own = ring + group * Copies::kSlotChunks;
#pragma unroll
  for (int slot = 0; slot < kRowSlots - 1; ++slot) {
    copies.issue(own + slot * kSlotChunks);
    copy_async_commit();
  }
  Sums<Tile::kWarpColumns / 8> sums = {};
  float totals[kPart] = {};
  for (int turn = 0; turn < turns; ++turn) {
    copy_async_wait<kRowSlots - 2>();
    __syncthreads();  // the copies of all are there, and the slot before is no longer read
    copies.issue(own + (turn + kRowSlots - 1) % kRowSlots * kSlotChunks);
    copy_async_commit();
    const int slot = turn % kRowSlots * kSlotChunks;
    if (turn / kBlockSteps * kRoundSteps + group * kBlockSteps + turn % kBlockSteps < steps) {
      multiply(Mode(), own + slot + warp_row * kChunk4,
               own + slot + Copies::kRowChunks + warp_column * Mode::kWeightChunks, lane, sums);
    }
    if ((turn + 1) % kBlockSteps == 0 || turn + 1 == turns) {
      add_sums<Tile, Copies::kSlotChunks>(ring + slot, group, thread, sums, totals);
    }
  }
  const RowLane at = row_lane<Mode>(lane);
  // A group has totals of one product of rows, or is alone and has both.
  constexpr int kEights = Tile::kWarpColumns / 8, kPartRows = Tile::kGroups == 1 ? 2 : 1;
  constexpr int kPartEights = kPart / (4 * kPartRows);
  const int first_product = group * kPart / 4;
#pragma unroll
  for (int half = 0; half < 2 * kPartRows; ++half) {
    const int r = first_product / kEights + half / 2;
    const int m = row + warp_row + 16 * r + at.group + half % 2 * 8;
    if (m >= p.rows) continue;
    const InitialRow initial = initial_row(p, layer, m);
    float* const output = p.output + (static_cast<int64_t>(layer) * p.rows + m) * p.outputs;
#pragma unroll
    for (int k = 0; k < 2 * kPartEights; ++k) {
      const int c = first_product % kEights + k / 2;
      const int o = column + warp_column + 8 * c + 2 * at.quad + k % 2;
      if (o >= p.outputs) continue;
      output[o] = initial.at(o) + totals[(half / 2 * kEights + k / 2) * 4 + half % 2 * 2 + k % 2];
    }
  }
}

}  // namespace vqvae2_fast::cuda::sampler
