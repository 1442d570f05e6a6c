// Where the chain of a cluster keeps what it hands on: in the shared memory of its blocks.
#pragma once

#include "../portable.h"

namespace vqvae2_fast::cuda::sampler {

// In this block's shared memory. Addresses count from its start.
struct OwnMemory {
  static constexpr bool kCluster = true;
  unsigned char* shared;
  bool owner;  // the thread that writes what lies in global memory

  template <typename T>
  __device__ __forceinline__ T* at(T* address) const {
    return reinterpret_cast<T*>(shared + reinterpret_cast<uintptr_t>(address));
  }
  __device__ __forceinline__ float get(const float* address) const { return *at(address); }
  __device__ __forceinline__ void put(float* address, float value) const { *at(address) = value; }
  __device__ __forceinline__ float get_cached(const float* address) const {
    return load_of_cluster(address);
  }
  __device__ __forceinline__ void put_cached(float* address, float value) const {
    store_for_cluster(address, value);
  }
  __device__ __forceinline__ bool writes_global() const { return owner; }
};

// In that of block `rank`, whose barrier counts what arrives.
struct BlockMemoryOf : OwnMemory {
  Arrivals* outputs;
  int rank;

  __device__ __forceinline__ void put(float* address, float value) const {
    store_async(at(address), value, outputs, rank);
  }
};

// In that of all blocks.
struct ClusterMemory : OwnMemory {
  Arrivals* outputs;
  int blocks;

  __device__ __forceinline__ void put(float* address, float value) const {
    for (int rank = 0; rank < blocks; ++rank) store_async(at(address), value, outputs, rank);
  }
};

}  // namespace vqvae2_fast::cuda::sampler
