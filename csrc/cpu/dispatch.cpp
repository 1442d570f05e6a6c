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

struct Levels {
  const KernelTable* tables[kMaxLevels] = {};
  const char* names[kMaxLevels + 1] = {};
  int count = 0;

  void add(const KernelTable& table) {
    tables[count] = &table;
    names[count++] = table.name;
  }
};

const Levels& levels() {
  static const Levels found = [] {
    Levels list;
    list.add(kScalarKernels);
#if defined(VQ_X86)
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      list.add(kAvx2Kernels);
      if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
        list.add(kAvx512Kernels);
        if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni")) {
          list.add(kAvx512Bf16Kernels);
        }
      }
    }
#elif defined(VQ_ARM64)
    list.add(kNeonKernels);
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
  throw std::runtime_error("VQVAE2_FAST_SIMD: expected a level that this CPU and build have (" +
                           known + "), got '" + name + "'.");
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

}  // namespace vqvae2_fast::cpu
