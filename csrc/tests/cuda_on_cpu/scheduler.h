// The GPU that a kernel sees: threads as fibers, blocks, warps, barriers, collectives.
//
// A thread runs until it meets a barrier or a collective, or spins on a flag; then the next one
// that can run does. The last to arrive releases the others. If no thread can run any more, the
// program aborts and says which threads wait where. A worker (an OS thread) runs the blocks of an
// ordinary launch one after another, each to its end, or cluster after cluster; the blocks of a
// cooperative launch are all resident from the start, distributed over the workers by clusters.
//
// This header is compiled with the kernels, under whatever sanitizer they are; scheduler.cpp is
// not, so that ThreadSanitizer sees only the kernels' memory, ordered only by barriers and flags.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "language.h"

namespace cuda_on_cpu {

// A place in the source, taken at the call by a default argument.
struct Where {
  const char* file;
  int line;
  static constexpr Where here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

// Prints the message with the current thread's coordinates, and aborts.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// The card that is modelled. The defaults are an H100's limits with fewer processors.
struct Device {
  int multiprocessors = 8;
  int max_threads_per_block = 1024;
  int max_threads_per_multiprocessor = 2048;
  int max_blocks_per_multiprocessor = 32;
  size_t shared_per_multiprocessor = 228 << 10;
  size_t shared_per_block = 48 << 10;
  size_t shared_per_block_optin = 227 << 10;
  size_t shared_reserved_per_block = 1 << 10;
  size_t l2_bytes = 50 << 20;
  int max_cluster = 16;  // blocks; above 8 a kernel has to be allowed it
  int major = 9, minor = 0;
  bool cooperative = true;
  int driver_version = 12040;  // reported when a planned failure says that it is too old
};
Device& device();

// Order in which threads and blocks run where CUDA promises none.
enum class Order { kForward, kReverse, kShuffled };

struct Schedule {
  Order order = Order::kForward;
  uint64_t seed = 0;  // of kShuffled
  int workers = 1;
};
// Read once from CUDA_ON_CPU_ORDER (forward, reverse or a seed) and CUDA_ON_CPU_THREADS.
Schedule& schedule();

// Blocks of this size that fit one multiprocessor, judging by threads and shared memory.
int resident_blocks_per_multiprocessor(unsigned threads, size_t shared_bytes);

struct GridShape {
  dim3 grid, block;
  size_t shared_bytes;  // dynamic
  size_t shared_limit;  // of static and dynamic together
  bool cooperative;
  unsigned cluster = 1;  // blocks along x
};
// A kernel with its arguments.
struct Kernel {
  void (*call)(const void* arguments);
  const void* arguments;
};
// Runs `kernel` on every thread of the grid and returns when all have ended. The shape is valid.
void run_grid(const GridShape& shape, const Kernel& kernel);

// Called on a CUDA thread.

unsigned rank_in_block();
unsigned lane();
unsigned threads_in_block();
void* dynamic_shared();
// One allocation per (block, key), filled with 0xFF bytes: NaN as a float, -1 as an int.
void* static_shared(const void* key, size_t bytes);

enum class BarrierKind { kSync, kAnd, kOr, kCount, kFirst };
unsigned block_barrier(BarrierKind kind, bool predicate, Where where);
// Another barrier, of the block's first threads.
void barrier_of_first(unsigned threads, Where where);
void grid_barrier(Where where);

// What one lane hands to the others.
struct alignas(16) Slot {
  unsigned char bytes[64];
};
// Meets the other lanes of `mask` in the same collective at the same place. Returns 32 slots, whose
// contents stay until this lane's next collective with this mask. Orders memory only if told to.
const Slot* meet(uint32_t mask, const char* what, const void* value, size_t bytes,
                 bool orders_memory, Where where);

// The thread waits for something that another thread will store. `value` is what it saw last.
void spin(const char* what, const void* flag, uint64_t wanted, uint64_t value, Where where);
// Something was stored that a spinning thread may wait for.
void note_progress();

// Fences, of which ThreadSanitizer knows nothing: what came before a fence is released by the
// relaxed atomic stores after it, and a fence acquires what the relaxed loads before it saw.
void fence();
void before_relaxed_store(void* address);
void after_relaxed_load(const void* address);

// __ldg goes through a cache that does not follow what other blocks store. Under AddressSanitizer
// the value is kept, and a launch that changes it ends with an error.
void read_only(const void* address, const void* value, uint32_t bytes, Where where);

// cp.async of this thread: copies that have been issued and not yet waited for.
struct Copy {
  void* destination;
  const void* source;
  uint32_t bytes, zeros;
};
void push_copy(const Copy& copy);
void commit_copies();
// Takes the next copy of all groups except the last `groups`; false if there is none.
bool pop_copy(size_t groups, Copy& copy);

}  // namespace cuda_on_cpu
