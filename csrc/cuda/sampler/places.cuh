// Where the rows of a step stand on the map, and how windows of guessed codes move along it.
//
// In a window the codes at columns from a sample's first on are guesses. A step computes all of its
// columns as if the guesses were right, and draws. A column is right if all guesses before it were
// drawn again; the first is always right. The next step begins after the last right column, and its
// guesses are what this step drew there. What wrong columns left in the rings and caches is
// computed again before it is read.
#pragma once

#include "memory.cuh"
#include "program.h"

namespace vqvae2_fast::cuda::sampler {

// A step row's position on the map, its network row n, its number r, and with windows the row's
// step t; r = n without.
struct Place {
  int i, j, n, r, t;
};

// The places of all step rows.
template <bool kWindow>
struct Places {
  // j is the column of all rows; with windows the row's step.
  int i, j;
  // Network row and column of each, in shared memory; column -1: none, off the map.
  const int2* rows;

  __device__ __forceinline__ Place at(int r) const {
    if constexpr (kWindow) return {i, rows[r].y, rows[r].x, r, j};
    return {i, j, r, r, 0};
  }
};

template <bool kWindow>
__device__ __forceinline__ bool on_map(Place at) {
  return !kWindow || at.j >= 0;
}

// The row of an operand of an operation: those with a stride of columns (the rings, and what the
// taps above gave) have one row for each network row, others one for each step row.
__device__ __forceinline__ int64_t row_of(Place at, int column_stride) {
  return column_stride ? at.n : at.r;
}

// What a row of a window shows is part of the draw only if all guesses before it were right, which
// move_windows finds out. Until then it is a mark of the row.
__device__ __forceinline__ unsigned long long* mark_of(const Network& net, int t, int r) {
  return net.marks + t % 2 * net.step_rows + r;
}

// A logit beyond the rule's largest, or what cannot carry it there.
__device__ __forceinline__ void note_invalid(const Network& net, Place at) {
  if (net.window > 1) {
    atomicOr(mark_of(net, at.t, at.r), 1ull);
  } else {
    atomicMax(net.too_large, 1);
  }
}

// Takes over the marks of step t, of which a thread has read its first; `columns` are the first
// that are not final. Step t + 2, whose marks have the same place, follows the draws of step t + 1,
// and these follow this.
__device__ __forceinline__ void settle_marks(const Network& net, int t, unsigned long long mark,
                                             const int* columns, const int2* rows) {
  const int first = threadIdx.x, threads = blockDim.x;
  for (int r = first; r < net.step_rows; r += threads) {
    if (r != first) mark = fresh(mark_of(net, t, r));
    if (mark == 0) continue;
    atomicExch(mark_of(net, t, r), 0ull);
    if (rows[r].y >= columns[rows[r].x % net.batch]) continue;
    atomicMax(net.too_large, 1);
  }
}

// Moves each sample's window forward after the draws of step t - 1 of the row; all threads of a
// block call it. Returns false when the row is done. Every block has its own copy of `columns` and
// `rows`. `matches` is written again by the draws of step t, which come after all blocks' work in
// step t, and that after this.
__device__ __forceinline__ bool move_windows(const Network& net, int t, int* columns, int2* rows) {
  bool more = false;
  // Marks come in the same trip to the L2 cache as what was drawn.
  const bool settles = blockIdx.x == 0 && t > 0;
  unsigned long long mark = 0;
  const int row = threadIdx.x;
  if (settles && row < net.step_rows) mark = fresh(mark_of(net, t - 1, row));
  for (int b = threadIdx.x; b < net.batch; b += blockDim.x) {
    int column = 0;
    if (t > 0) {
      column = columns[b];
      const int32_t* matches = net.matches + b * net.window;
      const int count = min(net.window, net.width - column);
      int right = count;
#pragma unroll 4
      for (int k = count - 2; k >= 0; --k) {
        if (!fresh(matches + k)) right = k + 1;
      }
      column += right;
    }
    columns[b] = column;
    more |= column < net.width;
  }
  more = __syncthreads_or(more);
  if (settles) {
    settle_marks(net, t - 1, mark, columns, rows);
    __syncthreads();  // before rows change
  }
  if (!more) return false;
  for (int r = threadIdx.x; r < net.step_rows; r += blockDim.x) {
    const int n = r / net.window, column = columns[n % net.batch] + r % net.window;
    rows[r] = make_int2(n, column < net.width ? column : -1);
  }
  __syncthreads();
  return true;
}

}  // namespace vqvae2_fast::cuda::sampler
