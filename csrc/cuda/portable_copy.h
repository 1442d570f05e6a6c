// cp.async for portable.h: copies from global to shared memory that overlap with computation.
//
// A thread issues copies and closes a group with copy_async_commit; copy_async_wait<n> returns when
// all groups except its last n have arrived. The block still has to meet at a barrier before other
// threads read them.
#pragma once

#include "portable.h"

namespace vqvae2_fast::cuda {

#if defined(__CUDACC__)
__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
#endif

// kBytes: 4, 8 or 16; both addresses aligned to it. With `valid` false, zeros are written instead
// and `global` is not read.
template <int kBytes>
__device__ __forceinline__ void copy_async_or_zero(void* shared, const void* global,
                                                   bool valid VQ_WHERE) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::async_copy(shared, global, kBytes, valid ? 0 : kBytes, where);
#else
  const int read = valid ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
                 "l"(global), "r"(read)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared_address(shared)),
                 "l"(global), "n"(kBytes), "r"(read)
                 : "memory");
  }
#endif
}

template <int kBytes>
__device__ __forceinline__ void copy_async(void* shared, const void* global VQ_WHERE) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::async_copy(shared, global, kBytes, 0, where);
#else
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(shared)),
                 "l"(global)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared_address(shared)),
                 "l"(global), "n"(kBytes)
                 : "memory");
  }
#endif
}

__device__ __forceinline__ void copy_async_commit() {
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::commit_copies();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

template <int kGroupsLeft>
__device__ __forceinline__ void copy_async_wait() {
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::wait_for_copies(kGroupsLeft);
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
#endif
}

}  // namespace vqvae2_fast::cuda
