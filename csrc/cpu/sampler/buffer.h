// Memory of the sampler: zeroed floats on cache-line boundaries, in huge pages if there are many.
#pragma once

#include <stdint.h>

namespace vqvae2_fast::cpu::sampler {

class Buffer {
 public:
  Buffer() = default;
  // Zeroed. Throws std::bad_alloc.
  explicit Buffer(int64_t size);
  ~Buffer();
  Buffer(Buffer&& other) noexcept { *this = static_cast<Buffer&&>(other); }
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  // Makes part `n` of `parts` of the pages memory, which the first write to each would do. Where
  // the system takes its time for that, all threads should share it.
  void populate(int64_t n, int64_t parts) const;

  float* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  float* data_ = nullptr;
  int64_t size_ = 0;
  void* mapped_ = nullptr;  // pages of its own
  int64_t bytes_ = 0;       // with those
};

}  // namespace vqvae2_fast::cpu::sampler
