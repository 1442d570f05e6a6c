// A fiber: one execution context with its own stack, and what the sanitizers need to know about it.
//
// The hooks are weak: the scheduler is compiled once, without a sanitizer, and finds at run time
// whether the program it is linked into runs under AddressSanitizer or ThreadSanitizer.
#pragma once

#include <stddef.h>

#if !defined(__x86_64__) || defined(CUDA_ON_CPU_UCONTEXT)
#define CUDA_ON_CPU_UCONTEXT 1
#include <ucontext.h>
#endif

namespace cuda_on_cpu {

struct Context {
#if defined(CUDA_ON_CPU_UCONTEXT)
  ucontext_t registers;
#else
  void* stack_pointer = nullptr;
#endif
};

struct Fiber {
  Context context;
  char* stack = nullptr;  // lowest address
  size_t stack_bytes = 0;
  void* tsan = nullptr;
  void* asan_fake_stack = nullptr;
};

// Stack of one CUDA thread in bytes; sanitized frames are several times larger.
size_t stack_bytes();

// Stacks for `count` fibers, unknown to ThreadSanitizer; their pages cost nothing until touched.
char* allocate_stacks(size_t count);
void free_stacks(char* stacks, size_t count);

// A fiber that runs `entry` when first switched to. `entry` never returns; it must call
// fiber_started() first.
void make_fiber(Fiber& fiber, char* stack, void (*entry)());
void destroy_fiber(Fiber& fiber);

// Describes the context that runs now, before the first switch away from it.
void adopt_current(Fiber& fiber);
// `ends`: the current fiber will not be resumed.
void switch_fiber(Fiber& from, Fiber& to, bool ends);
// First call inside a new fiber.
void fiber_started();

// True while nothing has written below the lowest quarter kibibyte of the stack.
bool stack_intact(const Fiber& fiber);

bool under_asan();
bool under_tsan();

// For ThreadSanitizer: everything before release(tag) happens before what follows acquire(tag).
void release(void* tag);
void acquire(void* tag);

// A moment that ThreadSanitizer can be told of later: what a thread had done when it fenced.
class Moment {
 public:
  Moment() = default;
  Moment(const Moment&) = delete;
  Moment& operator=(const Moment&) = delete;
  ~Moment();
  // Adds all that the current thread has done.
  void take();
  bool taken() const { return taken_; }
  // Whatever acquires `address` from now on happens after the moment.
  void release_to(void* address) const;

 private:
  void* clock_ = nullptr;  // a fiber that only ever learns of these moments
  bool taken_ = false;
  char tag_ = 0;
};

// While it lives, ThreadSanitizer does not see this thread's libc calls.
class Unseen {
 public:
  Unseen();
  ~Unseen();
  Unseen(const Unseen&) = delete;
  Unseen& operator=(const Unseen&) = delete;
};

}  // namespace cuda_on_cpu
