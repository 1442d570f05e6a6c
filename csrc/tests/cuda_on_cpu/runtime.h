// The part of the CUDA runtime that launchers and tests use: launches, attributes, memory. Streams
// are accepted and ignored: every call has finished its work when it returns.
//
// CUDA_ON_CPU_SMS=<n> makes the current context a green one of so many multiprocessors.
// CUDA_ON_CPU_FAIL=<call>:<error> makes a call fail with an error's number, for tests of what the
// caller does then: cudaGetDevice:35 is a driver that is too old.
#pragma once

#include <stddef.h>

#include <tuple>

#include "scheduler.h"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoDevice = 100,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorCooperativeLaunchTooLarge = 720,
  cudaErrorInvalidClusterSize = 912,
};
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();

typedef struct CudaOnCpuStream* cudaStream_t;

enum cudaDeviceAttr {
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrL2CacheSize = 38,
  cudaDevAttrMaxThreadsPerMultiProcessor = 39,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrCooperativeLaunch = 95,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);

// Of the driver, which is asked for its functions: the current context and its multiprocessors.
enum CUresult { CUDA_SUCCESS = 0 };
typedef struct CudaOnCpuContext* CUcontext;
enum CUdevResourceType { CU_DEV_RESOURCE_TYPE_SM = 1 };
struct CUdevResource {
  CUdevResourceType type;
  struct {
    unsigned smCount;
  } sm;
};
using PFN_cuCtxGetCurrent_v4000 = CUresult (*)(CUcontext*);
using PFN_cuCtxGetDevResource_v12040 = CUresult (*)(CUcontext, CUdevResource*, CUdevResourceType);
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess = 0 };
constexpr unsigned long long cudaEnableDefault = 0;
cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned version,
                                             unsigned long long flags,
                                             cudaDriverEntryPointQueryResult* found);

enum cudaMemcpyKind {
  cudaMemcpyHostToDevice = 1,
  cudaMemcpyDeviceToHost = 2,
  cudaMemcpyDeviceToDevice = 3,
};
// Filled with 0xFF bytes and exactly as long as asked for, so that AddressSanitizer sees an access
// outside.
cudaError_t cudaMalloc(void** pointer, size_t bytes);
cudaError_t cudaFree(void* pointer);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);

enum cudaLaunchAttributeID {
  cudaLaunchAttributeCooperative = 2,
  cudaLaunchAttributeClusterDimension = 4,
};
struct cudaLaunchAttributeValue {
  int cooperative;
  struct {
    unsigned x, y, z;
  } clusterDim;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};

enum cudaFuncAttribute {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributeNonPortableClusterSizeAllowed = 14,
};
struct cudaFuncAttributes {
  int ptxVersion;
};

namespace cuda_on_cpu {

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value);
cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, const Kernel& body);
cudaError_t active_clusters(int* clusters, const void* kernel, const cudaLaunchConfig_t& config);
cudaError_t occupancy(int* blocks, const void* kernel, int threads, size_t shared_bytes);
// Of the current context: those of CUDA_ON_CPU_SMS, or all of the device.
int context_multiprocessors();
// What kernels were compiled for: that of CUDA_ON_CPU_PTX, or of the device.
int ptx_version();
// What CUDA_ON_CPU_FAIL plans for this call, remembered as the last error.
cudaError_t planned_failure(const char* call);

}  // namespace cuda_on_cpu

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  static_assert((sizeof(Parameters) + ... + 0) <= 32764, "a kernel's parameters are limited");
  // Copied, as on a GPU, so that the kernel sees the arguments as they were at the launch.
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> parameters;
  };
  const Call call = {kernel, std::tuple<Parameters...>(static_cast<Parameters>(arguments)...)};
  const auto run = [](const void* pointer) {
    const Call& own = *static_cast<const Call*>(pointer);
    std::apply(own.kernel, own.parameters);
  };
  return cuda_on_cpu::launch(*config, reinterpret_cast<const void*>(kernel), {run, &call});
}
template <class Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel*) {
  attributes->ptxVersion = cuda_on_cpu::ptx_version();
  return cuda_on_cpu::planned_failure("cudaFuncGetAttributes");
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  return cuda_on_cpu::set_attribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, Kernel* kernel,
                                           const cudaLaunchConfig_t* config) {
  return cuda_on_cpu::active_clusters(clusters, reinterpret_cast<const void*>(kernel), *config);
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel* kernel, int threads,
                                                          size_t shared_bytes) {
  return cuda_on_cpu::occupancy(blocks, reinterpret_cast<const void*>(kernel), threads,
                                shared_bytes);
}
