// Device memory for the tests, on a GPU as on the CPU harness.
#pragma once

#include <stdio.h>
#include <stdlib.h>

#include <vector>

#include "../../cuda/launch.h"

namespace cuda_test {

using vqvae2_fast::cuda::launch;
using vqvae2_fast::cuda::LaunchShape;

inline void must(cudaError_t error) {
  if (error == cudaSuccess) return;
  printf("CUDA: %s\n", cudaGetErrorString(error));
  exit(1);
}

inline void must(const char* error) {
  if (error == nullptr) return;
  printf("%s\n", error);
  exit(1);
}

template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& values) : size_(values.size()) {
    void* memory = nullptr;
    must(cudaMalloc(&memory, size_ * sizeof(T)));
    memory_ = static_cast<T*>(memory);
    must(cudaMemcpyAsync(memory_, values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice,
                         nullptr));
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() { cudaFree(memory_); }

  T* data() { return memory_; }
  std::vector<T> values() const {
    std::vector<T> result(size_);
    must(cudaMemcpyAsync(result.data(), memory_, size_ * sizeof(T), cudaMemcpyDeviceToHost,
                         nullptr));
    must(cudaStreamSynchronize(nullptr));
    return result;
  }

 private:
  T* memory_ = nullptr;
  size_t size_;
};

template <class T>
DeviceArray<T> zeros(size_t size) {
  return DeviceArray<T>(std::vector<T>(size));
}

// Counts what failed and names it.
class Checks {
 public:
  void operator()(bool holds, const char* what) {
    ++count_;
    if (holds) return;
    ++failed_;
    printf("FAILED: %s\n", what);
  }
  int finish(const char* name) const {
    printf("%s: %d checks, %d failed\n", name, count_, failed_);
    return failed_ != 0;
  }

 private:
  int count_ = 0, failed_ = 0;
};

}  // namespace cuda_test
