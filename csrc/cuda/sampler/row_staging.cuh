// How tiles of the row phase come into shared memory, and where each thread finds its part there.
//
// A slot holds kStepInputs inputs of a tile's rows, and then of its columns, side by side in chunks
// of 16 bytes: four chunks of float32, two of bfloat16. The rows are float32 in every precision,
// because they lie so in the rings.
#pragma once

#include "product.cuh"
#include "row_tiles.h"

namespace vqvae2_fast::cuda::sampler {

constexpr int kRowThreads = 128;  // of a block
constexpr int kRowSlots = 3;      // of the ring: one is multiplied, two are on their way
constexpr int kBlockInputs = 128;
constexpr int kBlockSteps = kBlockInputs / kStepInputs;
constexpr int kChunk4 = 4;  // floats of a chunk, and chunks of a row
static_assert(kRowThreads == kRowWarps * kLanes);

// A RowTile as types have it.
template <int kTileRows, int kTileColumns, int kColumnsOfWarp>
struct Tile {
  static constexpr int kRows = kTileRows, kColumns = kTileColumns, kWarpColumns = kColumnsOfWarp;
  static constexpr int kGroups = RowTile{kRows, kColumns, kWarpColumns}.groups();
  static constexpr int kGroupThreads = kRowThreads / kGroups;
};

// Which chunk of a slot holds chunk `chunk` of a row of kChunks. Reads of eight neighbouring rows
// (ldmatrix), and of two neighbouring chunks in four rows (float2), meet no bank twice.
template <int kChunks>
__host__ __device__ constexpr int place(int row, int chunk) {
  static_assert(kChunks == 4 || kChunks == 2);
  if constexpr (kChunks == 2) return row * 2 + (chunk ^ row / 4 % 2);
  return row * 4 + (chunk ^ (row / 2 % 2 * 2 + row / 4 % 2));
}

// A lane of a warp's part: rows group + 8r, columns 2 * quad + 8c and the next.
struct RowLane {
  int group, quad;
};

// As the tensor cores lay out their sums.
__host__ __device__ constexpr RowLane matrix_lane(int lane) { return {lane / 4, lane % 4}; }
// For float32: lanes that differ in bit 1 read the same inputs, lanes that differ in bit 0 the same
// weights. A multiprocessor reads 16 bytes for each lane in half the cycles if such pairs read one
// address (https://forums.developer.nvidia.com/t/unexpected-shared-memory-bank-conflict/77228).
__host__ __device__ constexpr RowLane float_lane(int lane) {
  return {lane % 2 + lane / 8 * 2, lane / 2 % 4};
}

// Where lane `lane` reads inputs from chunk `chunk` on, and weights; eight rows further on it is
// 8 * kChunks chunks further on. By ldmatrix four matrices of 8 rows and one chunk:
__host__ __device__ constexpr int input_matrix_place(int lane, int chunk) {
  return place<4>(lane % 16, chunk + lane / 16);
}
template <int kChunks>
__host__ __device__ constexpr int weight_matrix_place(int lane, int chunk) {
  return place<kChunks>(lane / 16 * 8 + lane % 8, chunk + lane / 8 % 2);
}
// Two floats of an input of bfloat16; inputs begin with chunk 0 or 2.
__host__ __device__ constexpr int input_pair_place(int lane, int chunk) {
  return place<4>(matrix_lane(lane).group, chunk + matrix_lane(lane).quad / 2);
}
// Four floats of a row's inputs, and of the first of two columns' weights; the next column's are
// four chunks further on.
__host__ __device__ constexpr int input_float_place(int lane, int chunk) {
  return place<4>(float_lane(lane).group, chunk);
}
__host__ __device__ constexpr int weight_float_place(int lane, int chunk) {
  return place<4>(2 * float_lane(lane).quad, chunk);
}

// The copies that a thread issues for its group of warps. The group takes the blocks of
// kBlockInputs inputs number group, group + kGroups, ...
template <typename Mode, typename Tile>
class RowCopies {
 public:
  static constexpr int kWeightChunks = Mode::kWeightChunks;
  static constexpr int kRowChunks = Tile::kRows * kChunk4;  // of a slot, for one group
  static constexpr int kSlotChunks = kRowChunks + Tile::kColumns * kWeightChunks;

  __device__ __forceinline__ RowCopies(const RowProduct& p, int layer, int row, int column,
                                       int group, int thread)
      : p_(p), thread_(thread), step_(group * kBlockSteps) {
    const float* input = p.input + layer * p.input_layer;
#pragma unroll
    for (int t = 0; t < kRowCopies; ++t) {
      const int m = row + (t * Tile::kGroupThreads + thread) / kChunk4;
      rows_[t] = m < p.rows ? input + m / p.width * p.input_sample + m % p.width * p.input_column
                            : nullptr;
    }
    columns_left_ = p.outputs - column;
    const int64_t first =
        (static_cast<int64_t>(layer) * p.all_segments + p.first_segment) * p.steps * p.outputs;
    weights_ = static_cast<const uint4*>(p.weights) + (first + column) * kWeightChunks;
    steps_ = p.num_segments * p.steps;
    segment_ = step_ / p.steps;
    step_of_segment_ = step_ % p.steps;
  }

  // Issues the copies of the group's next step into its part of a slot; none after the last step.
  // A thread's copies lie whole eights of rows apart.
  __device__ __forceinline__ void issue(uint4* slot) {
    if (step_ < steps_) {
      issue_rows(slot + place<4>(thread_ / kChunk4, thread_ % kChunk4));
      const uint4* weights = weights_ + static_cast<int64_t>(step_) * p_.outputs * kWeightChunks;
#pragma unroll
      for (int t = 0; t < kWeightCopies; ++t) {
        const int item = t * Tile::kGroupThreads + thread_;
        const bool valid = item / kWeightChunks < columns_left_;
        copy_async_or_zero<16>(
            slot + kRowChunks + t * Tile::kGroupThreads +
                place<kWeightChunks>(thread_ / kWeightChunks, thread_ % kWeightChunks),
            valid ? weights + item : weights_, valid);
      }
    }
    const int after =
        step_ % kBlockSteps + 1 < kBlockSteps ? 1 : (Tile::kGroups - 1) * kBlockSteps + 1;
    step_ += after;
    step_of_segment_ += after;
    for (; step_of_segment_ >= p_.steps; step_of_segment_ -= p_.steps) ++segment_;
  }

 private:
  static constexpr int kRowCopies = kRowChunks / Tile::kGroupThreads;
  static constexpr int kWeightCopies = Tile::kColumns * kWeightChunks / Tile::kGroupThreads;

  // Four inputs of each row; zeros for what lies outside.
  __device__ __forceinline__ void issue_rows(uint4* to) const {
    const int input = step_of_segment_ * kStepInputs + thread_ % kChunk4 * kChunk4;
    const int64_t offset = p_.segments[segment_] + input;
    if (p_.by_four) {
#pragma unroll
      for (int t = 0; t < kRowCopies; ++t) {
        const bool valid = rows_[t] && input < p_.inputs;
        copy_async_or_zero<16>(to + t * Tile::kGroupThreads, valid ? rows_[t] + offset : p_.input,
                               valid);
      }
      return;
    }
#pragma unroll 1
    for (int k = 0; k < kChunk4; ++k) {
#pragma unroll
      for (int t = 0; t < kRowCopies; ++t) {
        const bool valid = rows_[t] && input + k < p_.inputs;
        copy_async_or_zero<4>(reinterpret_cast<float*>(to + t * Tile::kGroupThreads) + k,
                              valid ? rows_[t] + offset + k : p_.input, valid);
      }
    }
  }

  const RowProduct& p_;
  const float* rows_[kRowCopies];  // of this thread, in each of its copies; null outside
  const uint4* weights_;           // of the first segment and this tile's first column
  int thread_, columns_left_;
  int steps_, step_, segment_, step_of_segment_;
};

}  // namespace vqvae2_fast::cuda::sampler
