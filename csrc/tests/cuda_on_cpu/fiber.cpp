#include "fiber.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <mutex>
#include <utility>
#include <vector>

extern "C" {
#define WEAK __attribute__((weak))
WEAK void* __tsan_get_current_fiber();
WEAK void* __tsan_create_fiber(unsigned flags);
WEAK void __tsan_destroy_fiber(void* fiber);
WEAK void __tsan_switch_to_fiber(void* fiber, unsigned flags);
WEAK void __tsan_acquire(void* address);
WEAK void __tsan_release(void* address);
WEAK void AnnotateIgnoreReadsBegin(const char* file, int line);
WEAK void AnnotateIgnoreReadsEnd(const char* file, int line);
WEAK void AnnotateIgnoreWritesBegin(const char* file, int line);
WEAK void AnnotateIgnoreWritesEnd(const char* file, int line);
WEAK void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, size_t bytes);
WEAK void* __asan_region_is_poisoned(void* address, size_t bytes);
WEAK void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, size_t* bytes);
#undef WEAK
}

namespace cuda_on_cpu {
namespace {

constexpr unsigned char kCanary = 0xC5;
constexpr size_t kCanaryBytes = 256;
constexpr unsigned kNoSynchronisation = 1;

// Stacks of earlier blocks, whose pages exist already, so the next launch has no page faults.
std::mutex kept_mutex;
std::vector<std::pair<char*, size_t>> kept;

}  // namespace

bool under_asan() { return __asan_region_is_poisoned != nullptr; }
bool under_tsan() { return __tsan_create_fiber != nullptr; }

#if defined(CUDA_ON_CPU_UCONTEXT)

namespace {
void make_context(Context& context, char* stack, void (*entry)()) {
  getcontext(&context.registers);
  context.registers.uc_stack.ss_sp = stack;
  context.registers.uc_stack.ss_size = stack_bytes();
  context.registers.uc_link = nullptr;
  makecontext(&context.registers, entry, 0);
}
void switch_context(Context& from, Context& to) { swapcontext(&from.registers, &to.registers); }
}  // namespace

#else

// The System V ABI's callee-saved registers; mxcsr and the x87 control word are shared by all.
extern "C" void cuda_on_cpu_switch(void** from, void* to);
asm(R"(.text
.type cuda_on_cpu_switch,@function
cuda_on_cpu_switch:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp,(%rdi)
  mov %rsi,%rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
.size cuda_on_cpu_switch,.-cuda_on_cpu_switch
)");

namespace {
void make_context(Context& context, char* stack, void (*entry)()) {
  // Aligned so that `entry` finds its stack as after a call: 8 bytes below a multiple of 16.
  void** top = reinterpret_cast<void**>(stack + stack_bytes());
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  context.stack_pointer = top;
}
void switch_context(Context& from, Context& to) {
  cuda_on_cpu_switch(&from.stack_pointer, to.stack_pointer);
}
}  // namespace

#endif

size_t stack_bytes() {
  static const size_t bytes = (under_tsan() || under_asan() ? 256 : 64) << 10;
  return bytes;
}

char* allocate_stacks(size_t count) {
  {
    const std::lock_guard<std::mutex> lock(kept_mutex);
    for (size_t i = kept.size(); i-- > 0;) {
      if (kept[i].second != count) continue;
      char* stacks = kept[i].first;
      kept.erase(kept.begin() + static_cast<std::ptrdiff_t>(i));
      return stacks;
    }
  }
  void* stacks = mmap(nullptr, count * stack_bytes(), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) {
    fprintf(stderr, "cuda_on_cpu: no memory for the stacks of %zu threads\n", count);
    abort();
  }
  return static_cast<char*>(stacks);
}

void free_stacks(char* stacks, size_t count) {
  if (under_tsan()) {
    // It forgets what it remembers of a stack only when the mapping is removed.
    munmap(stacks, count * stack_bytes());
    return;
  }
  const std::lock_guard<std::mutex> lock(kept_mutex);
  kept.emplace_back(stacks, count);
}

void make_fiber(Fiber& fiber, char* stack, void (*entry)()) {
  fiber.stack = stack;
  fiber.stack_bytes = stack_bytes();
  memset(stack, kCanary, kCanaryBytes);
  make_context(fiber.context, stack, entry);
  if (under_tsan()) fiber.tsan = __tsan_create_fiber(0);
}

void destroy_fiber(Fiber& fiber) {
  if (fiber.tsan != nullptr) __tsan_destroy_fiber(fiber.tsan);
  fiber.tsan = nullptr;
}

void adopt_current(Fiber& fiber) {
  pthread_attr_t attributes;
  void* stack = nullptr;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &stack, &fiber.stack_bytes);
  pthread_attr_destroy(&attributes);
  fiber.stack = static_cast<char*>(stack);
  if (under_tsan()) fiber.tsan = __tsan_get_current_fiber();
}

void switch_fiber(Fiber& from, Fiber& to, bool ends) {
  if (under_asan()) {
    __sanitizer_start_switch_fiber(ends ? nullptr : &from.asan_fake_stack, to.stack,
                                   to.stack_bytes);
  }
  if (under_tsan()) __tsan_switch_to_fiber(to.tsan, kNoSynchronisation);
  switch_context(from.context, to.context);
  if (under_asan()) __sanitizer_finish_switch_fiber(from.asan_fake_stack, nullptr, nullptr);
}

void fiber_started() {
  if (under_asan()) __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
}

bool stack_intact(const Fiber& fiber) {
  for (size_t i = 0; i < kCanaryBytes; ++i) {
    if (static_cast<unsigned char>(fiber.stack[i]) != kCanary) return false;
  }
  return true;
}

void release(void* tag) {
  if (under_tsan()) __tsan_release(tag);
}

void acquire(void* tag) {
  if (under_tsan()) __tsan_acquire(tag);
}

Moment::~Moment() {
  if (clock_ != nullptr) __tsan_destroy_fiber(clock_);
}

void Moment::take() {
  taken_ = true;
  if (!under_tsan()) return;
  // Created in another thread's context it would know nothing; created here it knows this moment.
  void* self = __tsan_get_current_fiber();
  if (clock_ == nullptr) {
    clock_ = __tsan_create_fiber(0);
    return;
  }
  __tsan_release(&tag_);
  __tsan_switch_to_fiber(clock_, kNoSynchronisation);
  __tsan_acquire(&tag_);
  __tsan_switch_to_fiber(self, kNoSynchronisation);
}

void Moment::release_to(void* address) const {
  if (!under_tsan() || !taken_) return;
  void* self = __tsan_get_current_fiber();
  __tsan_switch_to_fiber(clock_, kNoSynchronisation);
  __tsan_release(address);
  __tsan_switch_to_fiber(self, kNoSynchronisation);
}

Unseen::Unseen() {
  if (!under_tsan()) return;
  AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
  AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
}

Unseen::~Unseen() {
  if (!under_tsan()) return;
  AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
}

}  // namespace cuda_on_cpu
