// Memory of the sampler: zeroed floats on cache-line boundaries, in huge pages if there are many
// and the system has them at hand.
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

  // Touches part `n` of `parts` of the pages, so that the system backs them with memory now and not
  // at the first write. Where that is slow, all threads should share it. Once two huge pages have
  // taken `patience` seconds each, the rest of this buffer and all later ones are in small pages.
  void populate(int64_t n, int64_t parts, double patience = kPatience) const;
  // Lets the system make huge pages of small ones in the background.
  void merge_pages() const;

  float* data() const { return data_; }
  int64_t size() const { return size_; }

 private:
  // Most machines need a tenth of a millisecond.
  static constexpr double kPatience = 1.5e-3;

  float* data_ = nullptr;
  int64_t size_ = 0;
  void* mapped_ = nullptr;  // pages of its own
  int64_t bytes_ = 0;       // with those
};

}  // namespace vqvae2_fast::cpu::sampler
