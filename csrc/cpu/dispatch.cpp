// Which SIMD level runs: decided once, from the CPU and VQVAE2_FAST_SIMD.
#include <stdlib.h>
#include <string.h>
#if defined(VQ_ARM64) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(VQ_ARM64)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <atomic>
#include <stdexcept>
#include <string>

#include "amx.h"
#include "kernels.h"

namespace vqvae2_fast::cpu {
namespace {

constexpr int kMaxLevels = 6;

// The levels of this build, lowest first: those that this CPU runs, then those that it cannot.
struct Levels {
  const KernelTable* tables[kMaxLevels] = {};
  const char* names[kMaxLevels + 1] = {};
  const char* missing[kMaxLevels + 1] = {};
  const char* needs[kMaxLevels] = {};  // what the CPU would have to have for each that is missing
  int count = 0, num_missing = 0;

  void add(const KernelTable& table, bool runs, const char* needed) {
    if (!runs) {
      needs[num_missing] = needed;
      missing[num_missing++] = table.name;
      return;
    }
    tables[count] = &table;
    names[count++] = table.name;
  }
};

const Levels& levels() {
  static const Levels found = [] {
    Levels list;
    list.add(kScalarKernels, true, "");
#if defined(VQ_X86)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq");
    list.add(kAvx2Kernels, avx2, "AVX2 and FMA");
    list.add(kAvx2VnniKernels, avx2 && __builtin_cpu_supports("avxvnni"), "AVX-VNNI");
    list.add(kAvx512Kernels, avx512, "AVX-512 F, BW, VL and DQ");
    const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
    list.add(kAvx512VnniKernels, vnni, "AVX-512 VNNI");
    list.add(kAvx512AmxKernels, vnni && has_amx(), "AMX with int8 and bfloat16");
#elif defined(VQ_ARM64)
    list.add(kNeonKernels, true, "");
#endif
    return list;
  }();
  return found;
}

const KernelTable* find_level(const char* name) {
  const Levels& list = levels();
  std::string known, missing;
  for (int i = 0; i < list.count; ++i) {
    if (strcmp(list.names[i], name) == 0) return list.tables[i];
    known += (i ? ", " : "") + std::string(list.names[i]);
  }
  for (int i = 0; i < list.num_missing; ++i) {
    missing += std::string(i ? ", " : "; it lacks ") + list.needs[i] + " for " + list.missing[i];
  }
  throw std::invalid_argument(
      "VQVAE2_FAST_SIMD: expected a SIMD level that this CPU and build have (" + known + missing +
      "), got '" + name + "'.");
}

const KernelTable* initial_level() {
  const char* wanted = getenv("VQVAE2_FAST_SIMD");
  return wanted && *wanted ? find_level(wanted) : levels().tables[levels().count - 1];
}

std::atomic<const KernelTable*>& current() {
  static std::atomic<const KernelTable*> table{initial_level()};
  return table;
}

}  // namespace

#if defined(VQ_ARM64)
bool has_dot_products() {
  static const bool found = [] {
#if defined(__APPLE__)
    int has = 0;
    size_t size = sizeof(has);
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has;
#else
    return (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
#endif
  }();
  return found;
}
#endif

const KernelTable& kernels() { return *current().load(std::memory_order_relaxed); }

void set_simd_level(const char* name) { current().store(find_level(name)); }

const char* const* simd_levels() { return levels().names; }

const char* const* missing_simd_levels() { return levels().missing; }

}  // namespace vqvae2_fast::cpu
