// Memory aligned to cache lines: a 64-byte vector that crosses a line costs two loads.
#pragma once

#include <stdint.h>
#include <stdlib.h>

#include <memory>
#include <new>

namespace vqvae2_fast::cpu {

struct FreeMemory {
  void operator()(void* memory) const { free(memory); }
};

template <class T>
using Aligned = std::unique_ptr<T[], FreeMemory>;

template <class T>
Aligned<T> aligned(int64_t count) {
  const size_t bytes = (static_cast<size_t>(count) * sizeof(T) + 63) / 64 * 64;
  void* memory = aligned_alloc(64, bytes ? bytes : 64);
  if (!memory) throw std::bad_alloc();
  return Aligned<T>(static_cast<T*>(memory));
}

}  // namespace vqvae2_fast::cpu
