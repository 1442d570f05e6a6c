// Thread block clusters for portable.h: blocks that run on neighbouring multiprocessors and write
// to each other's shared memory. Compute capability 9.0 or higher; elsewhere a kernel that gets
// here traps, so the host must not launch it there (`LaunchShape::cluster`).
//
//   cluster_rank(), cluster_blocks()     this block's number in its cluster, and their number
//   cluster_arrive(), cluster_wait(), cluster_sync()    a barrier of all the cluster's threads
//   store_cluster(p, value, rank)        a plain store to p's place in the shared memory of block
//                                        `rank`, which that block reads after the next cluster_sync
//   Arrivals                             an mbarrier, in dynamic shared memory
//   arrivals_init(a, count), arrivals_init_done()
//   arrive(a), arrive_at(a, rank)        one of `count` arrivals; at another block's barrier
//   arrive_expecting(a, bytes)           the same, and the phase waits for as many bytes as well
//   wait_for_phase(a, parity)            returns when the phase of this parity is complete
//   store_async(p, value, a, rank)       4 bytes to block `rank`, counted by its barrier
//   copy_bulk(shared, global, bytes, a)  a multiple of 16 bytes from global memory, counted by a
//   store_for_cluster(p, value), load_of_cluster(p)    global memory that the blocks of a cluster
//                                        store for each other, told by arrive_at or cluster_arrive
//   async_proxy_fence()                  between a buffer's plain accesses and the next bulk copy
//                                        into it
//
// A phase of a barrier is complete when all arrivals and all expected bytes are there; then the
// next one begins, with the same count. Phases have parities 0, 1, 0, ... A thread waits for each
// phase before the one after the next can end. A barrier is ready for other blocks once its block
// has called arrivals_init_done and all have met at cluster_sync. No block may exit while others
// still write to it: kernels end with cluster_sync.
//
// Order of memory: what a thread has done before an arrival, or a store_async, comes before what
// follows the wait for that phase. Only an arrival releases *global* memory; a store_async carries
// its own 4 bytes and says that whatever their value was computed from has been read.
#pragma once

#include "portable_copy.h"

namespace vqvae2_fast::cuda {

// Blocks of a cluster on every card that has clusters; more have to be asked for.
constexpr int kPortableCluster = 8;

using Arrivals = uint64_t;

#if defined(__CUDA_ARCH__)
#if __CUDA_ARCH__ >= 900
#define VQ_ON_CLUSTER(...) asm volatile(__VA_ARGS__)
#else
#define VQ_ON_CLUSTER(...) __trap()
#endif
#elif defined(__CUDACC__)
#define VQ_ON_CLUSTER(...)  // the host's pass
#endif

__device__ __forceinline__ int cluster_rank() {
#if defined(CUDA_ON_CPU)
  return cuda_on_cpu::cluster_rank();
#else
  uint32_t rank = 0;
  VQ_ON_CLUSTER("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return static_cast<int>(rank);
#endif
}

__device__ __forceinline__ int cluster_blocks() {
#if defined(CUDA_ON_CPU)
  return cuda_on_cpu::cluster_blocks();
#else
  uint32_t blocks = 1;
  VQ_ON_CLUSTER("mov.u32 %0, %%cluster_nctarank;" : "=r"(blocks));
  return static_cast<int>(blocks);
#endif
}

__device__ __forceinline__ void cluster_arrive(VQ_WHERE_ONLY) {
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::arrive_at_cluster(where);
#else
  VQ_ON_CLUSTER("barrier.cluster.arrive.release.aligned;" :: : "memory");
#endif
}

__device__ __forceinline__ void cluster_wait(VQ_WHERE_ONLY) {
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::wait_at_cluster(where);
#else
  VQ_ON_CLUSTER("barrier.cluster.wait.acquire.aligned;" :: : "memory");
#endif
}

__device__ __forceinline__ void cluster_sync(VQ_WHERE_ONLY) {
  cluster_arrive(VQ_PASS_WHERE_ONLY);
  cluster_wait(VQ_PASS_WHERE_ONLY);
}

#if !defined(CUDA_ON_CPU)
// The address, for this cluster, of p's place in the shared memory of block `rank`.
__device__ __forceinline__ uint32_t cluster_address(const void* p, int rank) {
  uint32_t address = 0;
  VQ_ON_CLUSTER("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(p)),
                "r"(rank));
  return address;
}
#endif

template <class T>
__device__ __forceinline__ void store_cluster(T* p, T value, int rank VQ_WHERE) {
  static_assert(sizeof(T) == 4);
#if defined(CUDA_ON_CPU)
  *static_cast<T*>(cuda_on_cpu::in_cluster(p, sizeof(T), rank, "a store", where)) = value;
#else
  VQ_ON_CLUSTER("st.shared::cluster.b32 [%0], %1;" ::"r"(cluster_address(p, rank)),
                "r"(bit_cast<uint32_t>(value)) : "memory");
#endif
}

// By one thread.
__device__ __forceinline__ void arrivals_init(Arrivals* arrivals, uint32_t count VQ_WHERE) {
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::barrier_init(arrivals, count, where);
#else
  VQ_ON_CLUSTER("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(arrivals)),
                "r"(count) : "memory");
#endif
}

// By the thread that initialised barriers, before cluster_sync: other blocks, and bulk copies, then
// find them.
__device__ __forceinline__ void arrivals_init_done() {
#if !defined(CUDA_ON_CPU)
  VQ_ON_CLUSTER("fence.mbarrier_init.release.cluster;" :: : "memory");
#endif
}

__device__ __forceinline__ void arrive(Arrivals* arrivals VQ_WHERE) {
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::barrier_arrive(arrivals, 0, where);
#else
  VQ_ON_CLUSTER(
      "{\n.reg .b64 state;\nmbarrier.arrive.release.cta.shared::cta.b64 state, [%0];\n}" ::"r"(
          shared_address(arrivals)) : "memory");
#endif
}

__device__ __forceinline__ void arrive_at(Arrivals* arrivals, int rank VQ_WHERE) {
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::barrier_arrive(static_cast<Arrivals*>(cuda_on_cpu::in_cluster(
                                  arrivals, sizeof(Arrivals), rank, "an arrival", where)),
                              0, where);
#else
  VQ_ON_CLUSTER("mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%0];" ::"r"(
      cluster_address(arrivals, rank)) : "memory");
#endif
}

// `bytes`: below 2^20.
__device__ __forceinline__ void arrive_expecting(Arrivals* arrivals, uint32_t bytes VQ_WHERE) {
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::barrier_arrive(arrivals, bytes, where);
#else
  VQ_ON_CLUSTER(
      "{\n.reg .b64 state;\n"
      "mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 state, [%0], %1;\n}" ::"r"(
          shared_address(arrivals)),
      "r"(bytes) : "memory");
#endif
}

// Whether the phase of this parity, the current one or the one before, is complete. It may take a
// while to say no.
__device__ __forceinline__ bool phase_complete(Arrivals* arrivals, uint32_t parity VQ_WHERE) {
#if defined(CUDA_ON_CPU)
  return cuda_on_cpu::poll_phase(arrivals, parity, where);
#else
  uint32_t complete = 1;
  VQ_ON_CLUSTER(
      "{\n.reg .pred complete;\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 complete, [%1], %2;\n"
      "selp.u32 %0, 1, 0, complete;\n}" : "=r"(complete) : "r"(shared_address(arrivals)),
      "r"(parity) : "memory");
  return complete != 0;
#endif
}

// Returns true when the phase is complete; false if it still is not after kMostPolls > 0 looks.
template <uint32_t kMostPolls = 0>
__device__ __forceinline__ bool wait_for_phase(Arrivals* arrivals, uint32_t parity VQ_WHERE) {
  for (uint32_t polls = 1; !phase_complete(arrivals, parity VQ_PASS_WHERE); ++polls) {
    if (kMostPolls > 0 && polls >= kMostPolls) return false;
#if defined(CUDA_ON_CPU)
    cuda_on_cpu::spin("wait_for_phase", arrivals, parity, parity ^ 1, where);
#endif
  }
  return true;
}

template <class T>
__device__ __forceinline__ void store_async(T* p, T value, Arrivals* arrivals, int rank VQ_WHERE) {
  static_assert(sizeof(T) == 4);
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::store_async(p, bit_cast<uint32_t>(value), arrivals, rank, where);
#else
  VQ_ON_CLUSTER("st.async.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(
                    cluster_address(p, rank)),
                "r"(bit_cast<uint32_t>(value)), "r"(cluster_address(arrivals, rank)) : "memory");
#endif
}

template <class T>
__device__ __forceinline__ void store_for_cluster(T* p, T value VQ_WHERE) {
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::store_for_cluster(p, value, where);
#else
  *p = value;
#endif
}

// From the L2 cache.
template <class T>
__device__ __forceinline__ T load_of_cluster(const T* p VQ_WHERE) {
#if defined(CUDA_ON_CPU)
  return cuda_on_cpu::load_of_cluster(p, where);
#else
  return __ldcg(p);
#endif
}

// By one thread; addresses and size are multiples of 16 bytes.
__device__ __forceinline__ void copy_bulk(void* shared, const void* global, uint32_t bytes,
                                          Arrivals* arrivals VQ_WHERE) {
#if defined(CUDA_ON_CPU)
  cuda_on_cpu::copy_bulk(shared, global, bytes, arrivals, where);
#else
  VQ_ON_CLUSTER(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(shared)),
      "l"(global), "r"(bytes), "r"(shared_address(arrivals)) : "memory");
#endif
}

__device__ __forceinline__ void async_proxy_fence() {
#if !defined(CUDA_ON_CPU)
  VQ_ON_CLUSTER("fence.proxy.async.shared::cta;" :: : "memory");
#endif
}

}  // namespace vqvae2_fast::cuda
