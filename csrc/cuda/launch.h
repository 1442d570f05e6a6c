// Launching kernels from host code that nvcc and the CPU harness both build: no <<<>>>, and errors
// as texts that carry the kernel's name and the launch's shape.
#pragma once

#include <stddef.h>
#include <stdio.h>

#include "portable.h"

#if defined(__CUDACC__)
#include <cudaTypedefs.h>
#endif

namespace vqvae2_fast::cuda {

struct LaunchShape {
  dim3 grid, block;
  size_t shared_bytes = 0;  // dynamic; above 48 KiB the kernel is opted in
  void* stream = nullptr;   // a cudaStream_t
  // All blocks resident at once, so that they may wait for each other.
  bool cooperative = false;
  unsigned cluster = 1;  // blocks of a cluster (portable_cluster.h), along x
};

// A text that lives until the thread's next error.
inline const char* launch_error(const char* name, const LaunchShape& shape, cudaError_t error) {
  static thread_local char text[256];
  snprintf(text, sizeof(text),
           "%s, grid (%u, %u, %u), block (%u, %u, %u), %zu bytes shared%s%s%.0u: %s", name,
           shape.grid.x, shape.grid.y, shape.grid.z, shape.block.x, shape.block.y, shape.block.z,
           shape.shared_bytes, shape.cooperative ? ", cooperative" : "",
           shape.cluster > 1 ? ", clusters of " : "", shape.cluster > 1 ? shape.cluster : 0,
           cudaGetErrorString(error));
  return text;
}

namespace detail {

template <class Kernel>
cudaError_t opt_into_shared(Kernel* kernel, size_t shared_bytes) {
  constexpr size_t kWithoutOptIn = 48 << 10;
  if (shared_bytes <= kWithoutOptIn) return cudaSuccess;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(shared_bytes));
}

// The part of a launch that does not depend on the kernel's parameters.
struct Configuration {
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};

  explicit Configuration(const LaunchShape& shape) {
    config.gridDim = shape.grid;
    config.blockDim = shape.block;
    config.dynamicSmemBytes = shape.shared_bytes;
    config.stream = static_cast<cudaStream_t>(shape.stream);
    config.attrs = attributes;
    if (shape.cooperative) {
      cudaLaunchAttribute& cooperative = attributes[config.numAttrs++];
      cooperative.id = cudaLaunchAttributeCooperative;
      cooperative.val.cooperative = 1;
    }
    if (shape.cluster > 1) {
      cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
      cluster.id = cudaLaunchAttributeClusterDimension;
      cluster.val.clusterDim.x = shape.cluster;
      cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    }
  }
  Configuration(const Configuration&) = delete;
  Configuration& operator=(const Configuration&) = delete;
};

// Allows the kernel the shape's shared memory and size of clusters.
template <class Kernel>
cudaError_t opt_in(Kernel* kernel, const LaunchShape& shape) {
  const cudaError_t error = opt_into_shared(kernel, shape.shared_bytes);
  if (error != cudaSuccess || shape.cluster <= kPortableCluster) return error;
  return cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
}

}  // namespace detail

// Returns null, or what went wrong. The launch is asynchronous, so errors of the running kernel
// come with a later call.
template <class... Parameters, class... Arguments>
const char* launch(const char* name, void (*kernel)(Parameters...), const LaunchShape& shape,
                   Arguments&&... arguments) {
  cudaError_t error = detail::opt_in(kernel, shape);
  if (error == cudaSuccess) {
    const detail::Configuration launched(shape);
    error = cudaLaunchKernelEx(&launched.config, kernel, static_cast<Arguments&&>(arguments)...);
  }
  if (error == cudaSuccess) return nullptr;
  cudaGetLastError();  // it has been told: the next call starts clean
  return launch_error(name, shape, error);
}

// Why a kernel of this build cannot run on the current device; null if it can. Cheap, and it leaves
// no error behind. The text lives until the thread's next one.
template <class Kernel>
const char* why_not_runnable(Kernel* kernel) {
  static thread_local char text[256];
  int device = 0, driver = 0, runtime = 0, major = 0, minor = 0;
  cudaFuncAttributes attributes;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaFuncGetAttributes(&attributes, kernel);
  if (error == cudaSuccess) return nullptr;
  switch (error) {
    case cudaErrorInsufficientDriver:
      cudaDriverGetVersion(&driver);
      cudaRuntimeGetVersion(&runtime);
      snprintf(text, sizeof(text),
               "the driver supports CUDA %d.%d and the kernels were built with CUDA %d.%d; update "
               "the NVIDIA driver, or build with an older nvcc",
               driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
      break;
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
      snprintf(text, sizeof(text), "this build has no kernels for compute capability %d.%d", major,
               minor);
      break;
    default:
      snprintf(text, sizeof(text), "CUDA reports: %s", cudaGetErrorString(error));
  }
  cudaGetLastError();  // it has been told: the next call starts clean
  return text;
}

// Multiprocessors that a launch may use: those of the current context if it is a green one, and
// else the device's, which under MPS are already this process's part. The runtime must have been
// used before, so that there is a context.
inline cudaError_t multiprocessors_of_context(int* count) {
  constexpr unsigned kSince = 12040;  // CUDA 12.4; an older driver has no green contexts
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device);
  }
  void *current = nullptr, *resource = nullptr;
  cudaDriverEntryPointQueryResult found;
  if (error != cudaSuccess ||
      cudaGetDriverEntryPointByVersion("cuCtxGetCurrent", &current, kSince, cudaEnableDefault,
                                       &found) != cudaSuccess ||
      cudaGetDriverEntryPointByVersion("cuCtxGetDevResource", &resource, kSince, cudaEnableDefault,
                                       &found) != cudaSuccess ||
      current == nullptr || resource == nullptr) {
    return error;
  }
  CUcontext context = nullptr;
  CUdevResource of_context = {};
  if (reinterpret_cast<PFN_cuCtxGetCurrent_v4000>(current)(&context) == CUDA_SUCCESS &&
      reinterpret_cast<PFN_cuCtxGetDevResource_v12040>(resource)(
          context, &of_context, CU_DEV_RESOURCE_TYPE_SM) == CUDA_SUCCESS) {
    const int own = static_cast<int>(of_context.sm.smCount);
    if (own > 0 && own < *count) *count = own;
  }
  return error;
}

// The largest number of blocks of a cooperative launch of this kernel in the current context; 0 if
// the kernel does not fit. On a GPU registers count too.
template <class Kernel>
int co_resident_blocks(Kernel* kernel, int threads, size_t shared_bytes) {
  int multiprocessors = 0, blocks = 0;
  if (detail::opt_into_shared(kernel, shared_bytes) != cudaSuccess ||
      multiprocessors_of_context(&multiprocessors) != cudaSuccess ||
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes) !=
          cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return multiprocessors * blocks;
}

// How many clusters of this shape the current device holds at once; 0 if it has none of that size,
// if the kernel does not fit, or if it was compiled for cards without clusters, where it traps: a
// card with clusters may run such code, as PTX that its driver compiles.
template <class Kernel>
int co_resident_clusters(Kernel* kernel, const LaunchShape& shape) {
  constexpr int kFirstWithClusters = 90;
  const detail::Configuration launched(shape);
  cudaFuncAttributes attributes = {};
  int clusters = 0;
  if (cudaFuncGetAttributes(&attributes, kernel) != cudaSuccess ||
      attributes.ptxVersion < kFirstWithClusters || detail::opt_in(kernel, shape) != cudaSuccess ||
      cudaOccupancyMaxActiveClusters(&clusters, kernel, &launched.config) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return clusters;
}

}  // namespace vqvae2_fast::cuda
