// Which SIMD level runs: decided once, from the CPU and VQVAE2_FAST_SIMD.
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <stdexcept>
#include <string>

#include "kernels.h"

namespace vqvae2_fast::cpu {
namespace {

constexpr int kMaxLevels = 4;

// The levels of this build, lowest first: those that this CPU runs, then those that it cannot.
struct Levels {
  const KernelTable* tables[kMaxLevels] = {};
  const char* names[kMaxLevels + 1] = {};
  const char* missing[kMaxLevels + 1] = {};
  int count = 0, num_missing = 0;

  void add(const KernelTable& table, bool runs) {
    if (!runs) {
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
    list.add(kScalarKernels, true);
#if defined(VQ_X86)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq");
    const bool avx512_bf16 =
        avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
    list.add(kAvx2Kernels, avx2);
    list.add(kAvx512Kernels, avx512);
    list.add(kAvx512Bf16Kernels, avx512_bf16);
#elif defined(VQ_ARM64)
    list.add(kNeonKernels, true);
#endif
    return list;
  }();
  return found;
}

const KernelTable* find_level(const char* name) {
  const Levels& list = levels();
  std::string known;
  for (int i = 0; i < list.count; ++i) {
    if (strcmp(list.names[i], name) == 0) return list.tables[i];
    known += (i ? ", " : "") + std::string(list.names[i]);
  }
  throw std::runtime_error(
      "VQVAE2_FAST_SIMD: expected a SIMD level that this CPU and build have (" + known +
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

const KernelTable& kernels() { return *current().load(std::memory_order_relaxed); }

void set_simd_level(const char* name) { current().store(find_level(name)); }

const char* const* simd_levels() { return levels().names; }

const char* const* missing_simd_levels() { return levels().missing; }

}  // namespace vqvae2_fast::cpu
