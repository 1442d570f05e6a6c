// Whether this process may use AMX's tiles.
#pragma once

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace vqvae2_fast::cpu {
namespace {

// AMX with int8 and bfloat16, and AVX-512's conversion to bfloat16. Tiles are 8 KiB of registers
// that the system saves only for processes that have asked for them, as this does; macOS has no
// such request.
inline bool has_amx() {
#if defined(__x86_64__) && defined(__linux__)
  constexpr long kRequest = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  constexpr unsigned kAmx = 1u << 22 | 1u << 24 | 1u << 25, kBfloat16 = 1u << 5;
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & kAmx) != kAmx) return false;
  if (!__get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) || !(eax & kBfloat16)) return false;
  return syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace
}  // namespace vqvae2_fast::cpu
