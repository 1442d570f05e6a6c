// cp.async: a copy arrives when its thread waits for it, not before. From the moment it is issued
// until then the destination holds 0xFF bytes, so that a missing wait reads NaN, and one that is
// issued while others still read the buffer is a race that ThreadSanitizer sees.
#pragma once

#include <string.h>

#include "scheduler.h"

namespace cuda_on_cpu {

inline void async_copy(void* destination, const void* source, uint32_t bytes, uint32_t zeros,
                       Where where) {
  if (bytes != 4 && bytes != 8 && bytes != 16) {
    fail("cp.async at %s:%d: %u bytes; expected 4, 8 or 16", where.file, where.line, bytes);
  }
  if (zeros > bytes) {
    fail("cp.async at %s:%d: %u zeros in %u bytes", where.file, where.line, zeros, bytes);
  }
  if (reinterpret_cast<uintptr_t>(destination) % bytes != 0 ||
      reinterpret_cast<uintptr_t>(source) % bytes != 0) {
    fail("cp.async at %s:%d: source or destination is not aligned to its %u bytes", where.file,
         where.line, bytes);
  }
  // The source is read twice, now and at the wait: whoever writes it in between races with one.
  // Volatile, because compilers drop a read that nothing uses.
  const auto* from = static_cast<const volatile unsigned char*>(source);
  uint32_t at = 0;
  for (; at + sizeof(uint32_t) <= bytes - zeros; at += sizeof(uint32_t)) {
    (void)*reinterpret_cast<const volatile uint32_t*>(from + at);
  }
  for (; at < bytes - zeros; ++at) (void)from[at];
  // Word by word: GCC expands a memset of a constant size where ThreadSanitizer does not see it.
  const uint32_t poison = ~0u;
  for (uint32_t b = 0; b < bytes; b += sizeof(poison)) {
    memcpy(static_cast<char*>(destination) + b, &poison, sizeof(poison));
  }
  push_copy({destination, source, bytes, zeros});
}

inline void wait_for_copies(size_t groups) {
  for (Copy copy; pop_copy(groups, copy);) {
    memcpy(copy.destination, copy.source, copy.bytes - copy.zeros);
    memset(static_cast<char*>(copy.destination) + copy.bytes - copy.zeros, 0, copy.zeros);
  }
}

}  // namespace cuda_on_cpu
