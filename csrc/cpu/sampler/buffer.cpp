#include "buffer.h"

#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
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
  // One more line, because a tile may prefetch (but never reads) the line after the last.
  bytes_ = size * static_cast<int64_t>(sizeof(float)) + kLine;
#if defined(__linux__)
  if (bytes_ >= kHugePage) {
    // Fresh pages are zero, and become memory when they are first written: by all threads at once.
    bytes_ += kHugePage;
    void* pages = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    mapped_ = pages;
    const auto address = reinterpret_cast<uintptr_t>(pages);
    data_ = reinterpret_cast<float*>((address + kHugePage - 1) / kHugePage * kHugePage);
#if defined(MADV_HUGEPAGE)
    madvise(pages, bytes_, MADV_HUGEPAGE);
#endif
    return;
  }
#endif
  bytes_ = (bytes_ + kLine - 1) / kLine * kLine;
  data_ = static_cast<float*>(aligned_alloc(kLine, bytes_));
  if (!data_) throw std::bad_alloc();
  memset(data_, 0, bytes_);
#if defined(__SANITIZE_ADDRESS__)
  // What the size was rounded up by is not to be read or written.
  const int64_t used = size * static_cast<int64_t>(sizeof(float));
  ASAN_POISON_MEMORY_REGION(data_ + size, bytes_ - used);
#endif
}

void Buffer::populate(int64_t n, int64_t parts) const {
  if (!mapped_) return;
  constexpr int64_t kPage = 4096 / sizeof(float), kHuge = kHugePage / sizeof(float);
  // Huge pages in turns, so that neighbours lie on the memory of different processors.
  for (int64_t begin = n * kHuge; begin < size_; begin += parts * kHuge) {
    const int64_t end = begin + kHuge < size_ ? begin + kHuge : size_;
    for (int64_t at = begin; at < end; at += kPage) const_cast<volatile float*>(data_)[at] = 0.0f;
  }
}

Buffer::~Buffer() {
#if defined(__linux__)
  if (mapped_) {
    munmap(mapped_, bytes_);
    return;
  }
#endif
  free(data_);
}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  std::swap(mapped_, other.mapped_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

}  // namespace vqvae2_fast::cpu::sampler
