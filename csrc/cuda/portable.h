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
//   VQ_SHARED(float, tile, [32][33])    a shared array; `__shared__` itself does not compile there
//   VQ_DYNAMIC_SHARED(float, memory)    the launch's dynamic shared memory, aligned to 128 bytes
//   load_acquire, load_relaxed, store_release, store_relaxed    4 or 8 bytes of global memory,
//                                       visible to all blocks
//   add_release(p, v), fetch_add_acq_rel(p, v)    a counter that several blocks raise
//   wait_at_least(flag, value)          until *flag, a uint32_t that only grows, is there
//   (acquire);
//                                       wait_at_least<polls> gives up after as many and is false
//   spin_pause()                        inside any other loop that polls memory: without it no
//                                       other block runs on the CPU
//   nanoseconds()                       a clock that all blocks share
//   grid_sync(counter)                  barrier over all blocks of a cooperative launch
//   copy_async<16>(shared, global), copy_async_or_zero, copy_async_commit, copy_async_wait<groups>
//   mma_bf16(d, a, b), mma_tf32(d, a, b), load_matrix_x4(registers, row), ..._transposed
//   pack_bf16x2, to_tf32
//
// Blocks hand data to each other as follows: the producer's threads write with plain stores, meet
// at __syncthreads, and one of them calls store_release or add_release on a flag; at the consumer
// one thread waits (wait_at_least), the block meets at __syncthreads, and all read with plain loads
// (not __ldg: its cache does not follow other blocks). Such kernels are launched cooperatively
// (launch.h), so that all blocks are resident.
//
// On the CPU, at the repository's root (the scheduler is never compiled with a sanitizer, the
// kernel may be, with -fsanitize=address,undefined or -fsanitize=thread):
//   g++ -std=c++20 -O2 -g -c
//   csrc/tests/cuda_on_cpu/{fiber,scheduler,synchronize,report,runtime}.cpp g++ -std=c++20 -O2 -g
//   -ffp-contract=off -Wno-unknown-pragmas -Icsrc/tests/cuda_on_cpu
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

// ---- Words shared by blocks, in global memory; T has 4 or 8 bytes.

template <class To, class From>
__device__ __forceinline__ To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof(to));
  return to;
}

template <class T>
__device__ __forceinline__ T load_acquire(const T* p) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
#if defined(CUDA_ON_CPU)
  return cuda_on_cpu::load(p, true);
#else
  if constexpr (sizeof(T) == 4) {
    uint32_t bits;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(bits) : "l"(p) : "memory");
    return bit_cast<T>(bits);
  } else {
    uint64_t bits;
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(bits) : "l"(p) : "memory");
    return bit_cast<T>(bits);
  }
#endif
}

// These order nothing else. They are for a word that is its own message, such as a value and its
// step in 8 bytes.
template <class T>
__device__ __forceinline__ T load_relaxed(const T* p) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
#if defined(CUDA_ON_CPU)
  return cuda_on_cpu::load(p, false);
#else
  if constexpr (sizeof(T) == 4) {
    uint32_t bits;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(bits) : "l"(p) : "memory");
    return bit_cast<T>(bits);
  } else {
    uint64_t bits;
    asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(bits) : "l"(p) : "memory");
    return bit_cast<T>(bits);
  }
#endif
}

template <class T>
__device__ __forceinline__ void store_release(T* p, T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::store(p, value, true);
#else
  if constexpr (sizeof(T) == 4) {
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(bit_cast<uint32_t>(value))
                 : "memory");
  } else {
    asm volatile("st.release.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(bit_cast<uint64_t>(value))
                 : "memory");
  }
#endif
}

template <class T>
__device__ __forceinline__ void store_relaxed(T* p, T value) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::store(p, value, false);
#else
  if constexpr (sizeof(T) == 4) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(p), "r"(bit_cast<uint32_t>(value))
                 : "memory");
  } else {
    asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(bit_cast<uint64_t>(value))
                 : "memory");
  }
#endif
}

__device__ __forceinline__ void add_release(uint32_t* p, uint32_t value) {
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::fetch_add(p, value, false);
#else
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
#endif
}

__device__ __forceinline__ uint32_t fetch_add_acq_rel(uint32_t* p, uint32_t value) {
#if defined(CUDA_ON_CPU)
  return cuda_on_cpu::fetch_add(p, value, true);
#else
  uint32_t old;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
               : "=r"(old)
               : "l"(p), "r"(value)
               : "memory");
  return old;
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

__device__ __forceinline__ void spin_pause(VQ_WHERE_ONLY) {
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::spin("spin_pause", nullptr, 0, 0, where);
#endif
}

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

// A barrier for all threads of all blocks of a cooperative launch. `counter` is one word of global
// memory that nothing else uses and that is zero before the first launch that uses it. It ends as
// blocks * barriers, which must stay below 2^32.
__device__ __forceinline__ void grid_sync(uint32_t* counter VQ_WHERE) {
  __syncthreads(VQ_PASS_WHERE_ONLY);
  if ((threadIdx.x | threadIdx.y | threadIdx.z) == 0) {
    const uint32_t blocks = gridDim.x * gridDim.y * gridDim.z;
    const uint32_t arrived = fetch_add_acq_rel(counter, 1);
    const uint32_t phase_end = arrived - arrived % blocks + blocks;
    wait_at_least(counter, phase_end VQ_PASS_WHERE);
  }
  __syncthreads(VQ_PASS_WHERE_ONLY);
}

}  // namespace vqvae2_fast::cuda

#include "portable_copy.h"
#include "portable_matrix.h"
