// The subset of cooperative_groups that kernels here use: the grid, the block, tiles of a warp.
#pragma once

#include "intrinsics.h"

namespace cooperative_groups {

using cuda_on_cpu::Where;

struct grid_group {
  void sync(Where where = Where::here()) const { cuda_on_cpu::grid_barrier(where); }
};
inline grid_group this_grid() { return {}; }

struct thread_block {
  void sync(Where where = Where::here()) const { __syncthreads(where); }
  unsigned size() const { return cuda_on_cpu::threads_in_block(); }
  unsigned thread_rank() const { return cuda_on_cpu::rank_in_block(); }
};
inline thread_block this_thread_block() { return {}; }

template <unsigned kSize>
class thread_block_tile {
 public:
  static_assert(kSize >= 1 && kSize <= 32 && (kSize & (kSize - 1)) == 0);

  static constexpr unsigned size() { return kSize; }
  unsigned thread_rank() const { return cuda_on_cpu::lane() % kSize; }
  unsigned meta_group_rank() const { return cuda_on_cpu::rank_in_block() / kSize; }

  void sync(Where where = Where::here()) const { __syncwarp(mask(), where); }
  template <class T>
  T shfl(T value, int source, Where where = Where::here()) const {
    return __shfl_sync(mask(), value, source, kSize, where);
  }
  template <class T>
  T shfl_xor(T value, int lane_mask, Where where = Where::here()) const {
    return __shfl_xor_sync(mask(), value, lane_mask, kSize, where);
  }
  template <class T>
  T shfl_down(T value, unsigned delta, Where where = Where::here()) const {
    return __shfl_down_sync(mask(), value, delta, kSize, where);
  }
  template <class T>
  T shfl_up(T value, unsigned delta, Where where = Where::here()) const {
    return __shfl_up_sync(mask(), value, delta, kSize, where);
  }
  unsigned ballot(int predicate, Where where = Where::here()) const {
    return __ballot_sync(mask(), predicate, where) >> first_lane();
  }
  int any(int predicate, Where where = Where::here()) const {
    return __any_sync(mask(), predicate, where);
  }
  int all(int predicate, Where where = Where::here()) const {
    return __all_sync(mask(), predicate, where);
  }

 private:
  unsigned first_lane() const { return cuda_on_cpu::lane() / kSize * kSize; }
  unsigned mask() const { return (kSize == 32 ? ~0u : (1u << kSize % 32) - 1) << first_lane(); }
};

template <unsigned kSize>
thread_block_tile<kSize> tiled_partition(const thread_block&) {
  return {};
}

}  // namespace cooperative_groups
