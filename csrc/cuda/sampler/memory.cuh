// Reading what other blocks write while the kernel runs.
#pragma once

#include "../portable.h"
#include "network.h"

namespace vqvae2_fast::cuda::sampler {

// From the L2 cache: a multiprocessor's own cache may hold an older value.
template <typename T>
__device__ __forceinline__ T fresh(const T* address) {
  return __ldcg(address);
}

// Where a block keeps what it hands on, and who writes it: in global memory, each value once. What
// the chain of a cluster uses instead stands in chain_memory.cuh.
struct GlobalMemory {
  static constexpr bool kCluster = false;
  __device__ __forceinline__ float get(const float* address) const { return fresh(address); }
  __device__ __forceinline__ void put(float* address, float value) const { *address = value; }
  // Of the caches of keys and values.
  __device__ __forceinline__ float get_cached(const float* address) const { return fresh(address); }
  __device__ __forceinline__ void put_cached(float* address, float value) const {
    *address = value;
  }
  // Whether this thread writes what lies in global memory in any case: rings, caches, the draw's
  // results.
  __device__ __forceinline__ bool writes_global() const { return true; }
};

// A position on the map, of network row n.
struct Place {
  int i, j, n;
};

// The same for all network rows.
struct Places {
  int i, j;

  __device__ __forceinline__ Place at(int n) const { return {i, j, n}; }
};

// A logit beyond the rule's largest, or what cannot carry it there.
__device__ __forceinline__ void note_invalid(const Network& net) { atomicMax(net.too_large, 1); }

// Asks the L2 cache for the line of 128 bytes at an address: a hint.
__device__ __forceinline__ void ask_for(const void* address) {
#if defined(__CUDA_ARCH__)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#else
  static_cast<void>(address);
#endif
}

// Where the input at (row i, column) of a layer's network row n lies, in elements.
__device__ __forceinline__ int64_t ring_index(const Network& net, const Ring& ring, int layer,
                                              int n, int i, int column) {
  const int64_t row = (static_cast<int64_t>(layer) * net.rows + n) * net.slots + i % net.slots;
  return (row * ring.columns + ring.left + column) * ring.channels;
}

}  // namespace vqvae2_fast::cuda::sampler
