// CUDA C++ that two compilers build from the same source: nvcc for a GPU, and a host compiler for
// csrc/tests/cuda_on_cpu, where every thread is a fiber and barriers, races and stray accesses are
// checked. A kernel includes this header and no CUDA header.
//
// What it may use
//   CUDA's own words          __global__, threadIdx ..., __syncthreads and _and/_or/_count,
//                             __syncwarp, __shfl_*_sync, __ballot_sync,
//                             __any/__all/__match_any_sync,
//                             __reduce_*_sync (32-bit integers), atomics on 4 and 8 bytes,
//                             __threadfence, __ldg/__ldcg/__stcg, float4 ..., __expf, rsqrtf,
//                             __popc
//   sync_first(threads)       a barrier of the block's first threads, whole warps; the others go on
//   VQ_SHARED(float, tile, [32][33])    a shared array; `__shared__` itself does not compile there
//   VQ_DYNAMIC_SHARED(float, memory)    the launch's dynamic shared memory, aligned to 128 bytes
//   load_acquire, load_relaxed, store_release    a uint32_t of global memory, visible to all blocks
//   wait_at_least(flag, value)          acquires *flag, a growing uint32_t, once it is there;
//                                       wait_at_least<polls> gives up after as many and is false.
//                                       The only loop that may poll memory: in any other no other
//                                       block runs on the CPU
//   nanoseconds()                       a clock that all blocks share
//   copy_async<16>(shared, global), copy_async_or_zero, copy_async_commit, copy_async_wait<groups>
//   clusters, their shared memory, mbarriers, bulk copies    see portable_cluster.h
//   mma_bf16(d, a, b), mma_tf32, load_matrix_x4(registers, row)
//   pack_bf16x2, to_tf32
//
// Blocks hand data to each other as follows: the producer's threads write with plain stores, meet
// at __syncthreads, and one of them calls store_release on a flag; at the consumer
// one thread waits (wait_at_least), the block meets at __syncthreads, and all read with plain loads
// (not __ldg: its cache does not follow other blocks). Such kernels are launched cooperatively
// (launch.h), so that all blocks are resident.
//
// On the CPU, at the repository's root (the scheduler is never compiled with a sanitizer, the
// kernel may be, with -fsanitize=address,undefined or -fsanitize=thread):
//   g++ -std=c++20 -O2 -g -c csrc/tests/cuda_on_cpu/*.cpp
//   g++ -std=c++20 -O2 -g -ffp-contract=off -Wno-unknown-pragmas -Icsrc/tests/cuda_on_cpu
//       -x c++ kernel.cu test.cpp -x none *.o -pthread -o test
// CUDA_ON_CPU_ORDER=forward|reverse|<seed> and CUDA_ON_CPU_THREADS=<n> at run time choose the order
// of threads and blocks and the OS threads they run on; cuda_on_cpu::device() and schedule()
// (scheduler.h) do so from a test, and set the card's size.
#pragma once

#include <stdint.h>

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#define VQ_SHARED(type, name, dims) __shared__ type name dims
#define VQ_DYNAMIC_SHARED(type, name)                                 \
  extern __shared__ __align__(128) unsigned char vq_dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(vq_dynamic_shared)
// A caller's place in the source, for the harness's reports, as the only or the last parameter and
// argument; nothing under nvcc.
#define VQ_WHERE_ONLY
#define VQ_WHERE
#define VQ_PASS_WHERE_ONLY
#define VQ_PASS_WHERE
#else
#include "cuda_on_cpu.h"  // of csrc/tests/cuda_on_cpu, on the harness's include path

#define VQ_SHARED(type, name, dims)                           \
  static char vq_key_of_##name;                               \
  using vq_type_of_##name = type dims;                        \
  vq_type_of_##name& name = *static_cast<vq_type_of_##name*>( \
      ::cuda_on_cpu::static_shared(&vq_key_of_##name, sizeof(vq_type_of_##name)))
#define VQ_DYNAMIC_SHARED(type, name) \
  type* const name = static_cast<type*>(::cuda_on_cpu::dynamic_shared())
#define VQ_WHERE_ONLY ::cuda_on_cpu::Where where = ::cuda_on_cpu::Where::here()
#define VQ_WHERE , VQ_WHERE_ONLY
#define VQ_PASS_WHERE_ONLY where
#define VQ_PASS_WHERE , where
#endif

namespace vqvae2_fast::cuda {

template <class To, class From>
__device__ __forceinline__ To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

// ---- Words shared by blocks, in global memory.

__device__ __forceinline__ uint32_t load_acquire(const uint32_t* p) {
#if defined(CUDA_ON_CPU)
  return cuda_on_cpu::load(p, true);
#else
  uint32_t value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
#endif
}

// This orders nothing else. It is for a report of what a word holds.
__device__ __forceinline__ uint32_t load_relaxed(const uint32_t* p) {
#if defined(CUDA_ON_CPU)
  return cuda_on_cpu::load(p, false);
#else
  uint32_t value;
  asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
#endif
}

__device__ __forceinline__ void store_release(uint32_t* p, uint32_t value) {
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::store_release(p, value);
#else
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
#endif
}

// A barrier of a block's first `threads` threads, a multiple of 32. All of a warp call it, as
// __syncthreads, which is another barrier.
__device__ __forceinline__ void sync_first(int threads VQ_WHERE) {
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::barrier_of_first(static_cast<unsigned>(threads), where);
#else
  asm volatile("bar.sync 1, %0;" ::"r"(threads) : "memory");
#endif
}

// A clock that all blocks share. How often it moves depends on the card: from 32 ns to 1 us.
__device__ __forceinline__ uint64_t nanoseconds() {
#if defined(CUDA_ON_CPU)
  return cuda_on_cpu::nanoseconds();
#else
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
#endif
}

// ---- Waiting for other blocks of a cooperative launch.

// Returns true when *flag - value, as a signed difference, is not negative; false if it still is
// after kMostPolls > 0 looks at it.
template <uint32_t kMostPolls = 0>
__device__ __forceinline__ bool wait_at_least(const uint32_t* flag, uint32_t value VQ_WHERE) {
  for (uint32_t polls = 1;; ++polls) {
    const uint32_t seen = load_acquire(flag);
    if (static_cast<int32_t>(seen - value) >= 0) return true;
    if (kMostPolls > 0 && polls >= kMostPolls) return false;
#if defined(CUDA_ON_CPU)
    cuda_on_cpu::spin("wait_at_least", flag, value, seen, where);
#endif
  }
}

}  // namespace vqvae2_fast::cuda

#include "portable_cluster.h"
#include "portable_copy.h"
#include "portable_matrix.h"
