#include "runtime.h"

#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <map>
#include <set>

namespace {

// Opt-ins to more than 48 KiB of dynamic shared memory, as cudaFuncSetAttribute made them.
std::map<const void*, size_t>& shared_limits() {
  static std::map<const void*, size_t> limits;
  return limits;
}

// Kernels that may have clusters of more blocks than every card with clusters offers.
std::set<const void*>& large_clusters() {
  static std::set<const void*> kernels;
  return kernels;
}

constexpr unsigned kPortableCluster = 8;

cudaError_t last_error = cudaSuccess;

cudaError_t remember(cudaError_t error) {
  if (error != cudaSuccess) last_error = error;
  return error;
}

}  // namespace

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorCooperativeLaunchTooLarge:
      return "too many blocks in cooperative launch";
    case cudaErrorInvalidClusterSize:
      return "cluster configuration not supported";
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorInvalidDeviceFunction:
      return "invalid device function";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorNoKernelImageForDevice:
      return "no kernel image is available for execution on the device";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}

cudaError_t cudaDriverGetVersion(int* version) {
  *version = cuda_on_cpu::device().driver_version;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cuda_on_cpu::planned_failure("cudaGetDevice");
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const cuda_on_cpu::Device& card = cuda_on_cpu::device();
  if (const cudaError_t error = cuda_on_cpu::planned_failure("cudaDeviceGetAttribute")) {
    return error;
  }
  switch (attribute) {
    case cudaDevAttrMaxSharedMemoryPerBlock:
      *value = static_cast<int>(card.shared_per_block);
      return cudaSuccess;
    case cudaDevAttrMultiProcessorCount:
      *value = card.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrL2CacheSize:
      *value = static_cast<int>(card.l2_bytes);
      return cudaSuccess;
    case cudaDevAttrMaxThreadsPerMultiProcessor:
      *value = card.max_threads_per_multiprocessor;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = card.major;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = card.minor;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = static_cast<int>(card.shared_per_multiprocessor);
      return cudaSuccess;
    case cudaDevAttrCooperativeLaunch:
      *value = card.cooperative;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(card.shared_per_block_optin);
      return cudaSuccess;
  }
  return remember(cudaErrorInvalidValue);
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* found) {
  *found = cudaDriverEntryPointSuccess;
  const PFN_cuCtxGetCurrent_v4000 current = [](CUcontext* context) {
    *context = nullptr;
    return CUDA_SUCCESS;
  };
  const PFN_cuCtxGetDevResource_v12040 resource = [](CUcontext, CUdevResource* of,
                                                     CUdevResourceType) {
    of->sm.smCount = static_cast<unsigned>(cuda_on_cpu::context_multiprocessors());
    return CUDA_SUCCESS;
  };
  *function = strcmp(name, "cuCtxGetCurrent") == 0 ? reinterpret_cast<void*>(current)
                                                   : reinterpret_cast<void*>(resource);
  return cuda_on_cpu::planned_failure(name);
}

cudaError_t cudaMalloc(void** pointer, size_t bytes) {
  if (posix_memalign(pointer, 256, bytes) != 0) return remember(cudaErrorMemoryAllocation);
  memset(*pointer, 0xFF, bytes);
  return cudaSuccess;
}

cudaError_t cudaFree(void* pointer) {
  free(pointer);
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t) {
  memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* pointer, int value, size_t bytes, cudaStream_t) {
  memset(pointer, value, bytes);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }

namespace cuda_on_cpu {

cudaError_t planned_failure(const char* call) {
  const char* const plan = getenv("CUDA_ON_CPU_FAIL");
  const size_t length = strlen(call);
  if (!plan || strncmp(plan, call, length) != 0 || plan[length] != ':') return cudaSuccess;
  return remember(static_cast<cudaError_t>(atoi(plan + length + 1)));
}

int context_multiprocessors() {
  const char* const green = getenv("CUDA_ON_CPU_SMS");
  return green ? atoi(green) : device().multiprocessors;
}

int ptx_version() {
  const char* const built = getenv("CUDA_ON_CPU_PTX");
  return built ? atoi(built) : 10 * device().major;
}

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (const cudaError_t error = planned_failure("cudaFuncSetAttribute")) return error;
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed) {
    if (value != 0) large_clusters().insert(kernel);
    return cudaSuccess;
  }
  if (value < 0 || static_cast<size_t>(value) > device().shared_per_block_optin) {
    return remember(cudaErrorInvalidValue);
  }
  shared_limits()[kernel] = static_cast<size_t>(value);
  return cudaSuccess;
}

// Blocks of a cluster of this launch; 0 if it may have none of that size.
unsigned cluster_of(const cudaLaunchConfig_t& config, const void* kernel) {
  unsigned cluster = 1;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    if (config.attrs[i].id != cudaLaunchAttributeClusterDimension) continue;
    const auto& size = config.attrs[i].val.clusterDim;
    if (size.y != 1 || size.z != 1) fail("clusters along x are modelled, not along y or z");
    cluster = size.x;
  }
  const unsigned most = large_clusters().count(kernel) != 0
                            ? static_cast<unsigned>(device().max_cluster)
                            : std::min<unsigned>(kPortableCluster, device().max_cluster);
  const bool right = cluster == 1 || (device().major >= 9 && cluster <= most);
  return right && cluster != 0 && config.gridDim.x % cluster == 0 ? cluster : 0;
}

// As if every cluster found its multiprocessors next to each other.
cudaError_t active_clusters(int* clusters, const void* kernel, const cudaLaunchConfig_t& config) {
  if (const cudaError_t error = planned_failure("cudaOccupancyMaxActiveClusters")) return error;
  const unsigned cluster = cluster_of(config, kernel);
  if (cluster == 0) return remember(cudaErrorInvalidClusterSize);
  const dim3 block = config.blockDim;
  const int blocks =
      resident_blocks_per_multiprocessor(block.x * block.y * block.z, config.dynamicSmemBytes);
  *clusters = context_multiprocessors() * blocks / static_cast<int>(cluster);
  return cudaSuccess;
}

cudaError_t occupancy(int* blocks, const void*, int threads, size_t shared_bytes) {
  if (const cudaError_t error = planned_failure("cudaOccupancyMaxActiveBlocksPerMultiprocessor")) {
    return error;
  }
  if (threads < 1 || threads > device().max_threads_per_block) {
    return remember(cudaErrorInvalidValue);
  }
  *blocks = resident_blocks_per_multiprocessor(static_cast<unsigned>(threads), shared_bytes);
  return cudaSuccess;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, const Kernel& body) {
  if (const cudaError_t error = planned_failure("cudaLaunchKernelEx")) return error;
  const Device& card = device();
  const dim3 grid = config.gridDim, block = config.blockDim;
  const uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
  const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
  if (threads == 0 || threads > static_cast<uint64_t>(card.max_threads_per_block) || block.z > 64 ||
      blocks == 0 || grid.x > 0x7FFFFFFFu || grid.y > 65535 || grid.z > 65535) {
    return remember(cudaErrorInvalidConfiguration);
  }
  const auto opt_in = shared_limits().find(kernel);
  const bool opted_in = opt_in != shared_limits().end() && opt_in->second > card.shared_per_block;
  if (config.dynamicSmemBytes > (opted_in ? opt_in->second : card.shared_per_block)) {
    return remember(cudaErrorInvalidValue);
  }
  const size_t limit = opted_in ? card.shared_per_block_optin : card.shared_per_block;
  const unsigned cluster = cluster_of(config, kernel);
  if (cluster == 0) return remember(cudaErrorInvalidClusterSize);
  bool cooperative = false;
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    cooperative |= config.attrs[i].id == cudaLaunchAttributeCooperative &&
                   config.attrs[i].val.cooperative != 0;
  }
  if (cooperative) {
    const uint64_t resident =
        static_cast<uint64_t>(context_multiprocessors()) *
        resident_blocks_per_multiprocessor(static_cast<unsigned>(threads), config.dynamicSmemBytes);
    if (blocks > resident) return remember(cudaErrorCooperativeLaunchTooLarge);
  }
  run_grid({grid, block, config.dynamicSmemBytes, limit, cooperative, cluster}, body);
  return cudaSuccess;
}

}  // namespace cuda_on_cpu
