// Clusters: the barrier of their threads, addresses in each other's shared memory, and mbarriers
// with phases and bytes.
//
// What a barrier counts in bytes, a store_async or a bulk copy, arrives as late as it may: when a
// thread has waited for its phase. From the moment it is issued until then the destination holds
// 0xFF bytes, so that a missing wait reads NaN, and one that is issued while others still read the
// destination is a race that ThreadSanitizer sees.
#pragma once

#include "scheduler.h"

namespace cuda_on_cpu {

// Called on a CUDA thread; all blocks of a cluster run on one OS thread.

int cluster_rank();
int cluster_blocks();
void arrive_at_cluster(Where where);
void wait_at_cluster(Where where);

// The place of p, which lies in this block's dynamic shared memory, in that of block `rank`.
void* in_cluster(const void* p, size_t bytes, int rank, const char* what, Where where);

// Global memory that blocks of a cluster store for each other. What a block has stored it tells by
// an arrival at another block's barrier, or at the cluster's. A store_async tells nothing.
void note_stored(const void* p, Where where);
void check_told(const void* p, Where where);

template <class T>
void store_for_cluster(T* p, T value, Where where) {
  note_stored(p, where);
  *p = value;
}
template <class T>
T load_of_cluster(const T* p, Where where) {
  check_told(p, where);
  return *static_cast<const volatile T*>(p);
}

// An asynchronous write. `value` holds it if there is no source.
struct Landing {
  void* destination;
  const void* source;
  uint32_t bytes, value;
};
// The harness's part of a barrier at `word`; the inline functions below access the word and what is
// copied, so that the sanitizers see it.
void begin_barrier(const uint64_t* word, uint32_t count, Where where);
void count_arrival(const uint64_t* word, uint32_t expected_bytes, Where where);
void issue(const uint64_t* word, const Landing& landing, Where where);
// Whether the phase is complete; what it counted has then to be landed by take_landing, and others
// may see it after landed().
bool complete_phase(const uint64_t* word, uint32_t parity, Where where);
bool take_landing(const uint64_t* word, Landing& landing);
void landed(const uint64_t* word, uint32_t parity);

// Word by word: ThreadSanitizer does not see what the C library copies inside.
inline void write_words(void* destination, const void* source, uint32_t bytes) {
  volatile uint32_t* const to = static_cast<volatile uint32_t*>(destination);
  const uint32_t* const from = static_cast<const uint32_t*>(source);
  for (uint32_t i = 0; i < bytes / sizeof(uint32_t); ++i) {
    to[i] = from != nullptr ? from[i] : 0xFFFFFFFFu;
  }
}

// A barrier is used after it was initialised, in an order that ThreadSanitizer checks.
inline void look_at(const uint64_t* word) { *static_cast<const volatile uint64_t*>(word); }

inline void barrier_init(uint64_t* word, uint32_t count, Where where) {
  begin_barrier(word, count, where);
  *word = 0;
}

inline void barrier_arrive(const uint64_t* word, uint32_t expected_bytes, Where where) {
  count_arrival(word, expected_bytes, where);
  look_at(word);
}

inline bool poll_phase(const uint64_t* word, uint32_t parity, Where where) {
  if (!complete_phase(word, parity, where)) {
    look_at(word);
    return false;
  }
  look_at(word);
  for (Landing landing; take_landing(word, landing);) {
    write_words(landing.destination, landing.source != nullptr ? landing.source : &landing.value,
                landing.bytes);
  }
  landed(word, parity);
  return true;
}

inline void store_async(void* p, uint32_t value, const uint64_t* word, int rank, Where where) {
  if (cluster_blocks() == 1) {
    fail("st.async at %s:%d: the cluster has one block", where.file, where.line);
  }
  void* const destination = in_cluster(p, sizeof(value), rank, "st.async", where);
  const auto* const theirs =
      static_cast<const uint64_t*>(in_cluster(word, sizeof(*word), rank, "st.async", where));
  look_at(theirs);
  write_words(destination, nullptr, sizeof(value));
  issue(theirs, {destination, nullptr, sizeof(value), value}, where);
}

inline void copy_bulk(void* shared, const void* global, uint32_t bytes, const uint64_t* word,
                      Where where) {
  const uintptr_t together =
      reinterpret_cast<uintptr_t>(shared) | reinterpret_cast<uintptr_t>(global) | bytes;
  if (together % 16 != 0 || bytes == 0) {
    fail("cp.async.bulk at %s:%d: %p to %p, %u bytes; expected multiples of 16", where.file,
         where.line, global, shared, bytes);
  }
  in_cluster(shared, bytes, cluster_rank(), "cp.async.bulk", where);
  look_at(word);
  write_words(shared, nullptr, bytes);
  issue(word, {shared, global, bytes, 0}, where);
}

}  // namespace cuda_on_cpu
