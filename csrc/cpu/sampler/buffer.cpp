#include "buffer.h"

#include <stdlib.h>
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <new>
#include <utility>

namespace vqvae2_fast::cpu::sampler {
namespace {

constexpr int64_t kLine = 64;
// With pages of 2 MiB, streaming the weights has no miss in address translation every 4 KiB.
constexpr int64_t kHugePage = int64_t{1} << 21;

// Whether huge pages are slow to come by. The host of a virtual machine may have taken back what
// lies free in whole huge pages, and then needs about 4 ms for one. Small pages come first from
// scattered memory that the machine still has: 512 of them take 1 ms.
std::atomic<bool> takes_small_pages{false};

enum class Pages { kHuge, kSmall };

void advise(void* begin, int64_t bytes, Pages pages) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  madvise(begin, bytes, pages == Pages::kHuge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
#else
  (void)begin, (void)bytes, (void)pages;
#endif
}

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
    advise(pages, bytes_, takes_small_pages ? Pages::kSmall : Pages::kHuge);
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

void Buffer::populate(int64_t n, int64_t parts, double patience) const {
  if (!mapped_) return;
  using Clock = std::chrono::steady_clock;
  constexpr int64_t kPage = 4096 / sizeof(float), kHuge = kHugePage / sizeof(float);
  int slow = 0;  // in a row: another process may have interrupted a single one
  // Huge pages in turns, so that neighbours lie on the memory of different processors.
  for (int64_t begin = n * kHuge; begin < size_; begin += parts * kHuge) {
    const auto start = Clock::now();
    const int64_t end = std::min(begin + kHuge, size_);
    for (int64_t at = begin; at < end; at += kPage) const_cast<volatile float*>(data_)[at] = 0.0f;
    const std::chrono::duration<double> passed = Clock::now() - start;
    slow = passed.count() > patience ? slow + 1 : 0;
    if (slow < 2 || takes_small_pages.exchange(true)) continue;
    // The other threads may be populating some of these already.
    char* const rest = reinterpret_cast<char*>(data_ + end);
    advise(rest, static_cast<char*>(mapped_) + bytes_ - rest, Pages::kSmall);
  }
}

void Buffer::merge_pages() const {
  if (mapped_) advise(mapped_, bytes_, Pages::kHuge);
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
