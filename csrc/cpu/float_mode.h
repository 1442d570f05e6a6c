// The floating-point mode that results are defined in: numbers below 2^-126 are kept, and results
// are rounded to nearest. A program may have set another, as torch.set_flush_denormal(True) does.
#pragma once

#include <stdint.h>

#if defined(__x86_64__) || defined(_M_X64)
#include <xmmintrin.h>
#endif

namespace vqvae2_fast::cpu {

// Sets the mode of the calling thread, and puts back the one before at its end.
class DefaultFloats {
 public:
  DefaultFloats() : before_(mode()) {
    if ((before_ & kOther) != 0) set(before_ & ~kOther);
  }
  ~DefaultFloats() {
    if ((before_ & kOther) != 0) set(before_);
  }
  DefaultFloats(const DefaultFloats&) = delete;
  DefaultFloats& operator=(const DefaultFloats&) = delete;

 private:
#if defined(__x86_64__) || defined(_M_X64)
  // MXCSR: flush to zero, rounding, denormals are zeros.
  static constexpr uint64_t kOther = 0x8000 | 0x6000 | 0x0040;
  static uint64_t mode() { return _mm_getcsr(); }
  static void set(uint64_t value) { _mm_setcsr(static_cast<unsigned int>(value)); }
#elif defined(__aarch64__)
  static constexpr uint64_t kOther = uint64_t{7} << 22;  // FPCR: rounding, flush to zero
  static uint64_t mode() {
    uint64_t value;
    __asm__ volatile("mrs %0, fpcr" : "=r"(value));
    return value;
  }
  static void set(uint64_t value) { __asm__ volatile("msr fpcr, %0" : : "r"(value)); }
#else
  static constexpr uint64_t kOther = 0;
  static uint64_t mode() { return 0; }
  static void set(uint64_t) {}
#endif
  uint64_t before_;
};

}  // namespace vqvae2_fast::cpu
