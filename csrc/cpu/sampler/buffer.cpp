#include "buffer.h"

#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <new>
#include <utility>

namespace vqvae2_fast::cpu::sampler {
namespace {

constexpr int64_t kLine = 64;
// With pages of 2 MiB, streaming the weights has no miss in address translation every 4 KiB.
constexpr int64_t kHugePage = int64_t{1} << 21;

}  // namespace

Buffer::Buffer(int64_t size) : size_(size) {
  const int64_t wanted = size * static_cast<int64_t>(sizeof(float));
  const int64_t alignment = wanted >= kHugePage ? kHugePage : kLine;
  // One more line, because a tile may prefetch (but never reads) the line after the last.
  const int64_t bytes = (wanted + kLine + alignment - 1) / alignment * alignment;
  data_ = static_cast<float*>(aligned_alloc(alignment, bytes));
  if (!data_) throw std::bad_alloc();
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (alignment == kHugePage) madvise(data_, bytes, MADV_HUGEPAGE);
#endif
  memset(data_, 0, bytes);
}

Buffer::~Buffer() { free(data_); }

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

}  // namespace vqvae2_fast::cpu::sampler
