// Atomics, fences and cached loads. CUDA's atomics order nothing but themselves, and neither do
// these; a __threadfence next to one orders memory, as ThreadSanitizer is told (scheduler.h).
#pragma once

#include <string.h>

#include <chrono>
#include <type_traits>

#include "scheduler.h"

namespace cuda_on_cpu {

// A read-modify-write. `change` may be called more than once.
template <class T, class Change>
T read_modify_write(T* address, Change change) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  before_relaxed_store(address);
  T old, changed;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  do {
    changed = change(old);
  } while (!__atomic_compare_exchange(address, &old, &changed, false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED));
  after_relaxed_load(address);
  // A loop that polls by atomics changes nothing while it waits.
  if (memcmp(&old, &changed, sizeof(T)) != 0) note_progress();
  return old;
}

template <class T>
using Value = std::common_type_t<T>;  // not deduced: only the pointer determines the type

}  // namespace cuda_on_cpu

template <class T>
T atomicAdd(T* address, cuda_on_cpu::Value<T> value) {
  return cuda_on_cpu::read_modify_write(address, [=](T old) -> T { return old + value; });
}
template <class T>
T atomicSub(T* address, cuda_on_cpu::Value<T> value) {
  return cuda_on_cpu::read_modify_write(address, [=](T old) -> T { return old - value; });
}
template <class T>
T atomicMin(T* address, cuda_on_cpu::Value<T> value) {
  return cuda_on_cpu::read_modify_write(address, [=](T old) { return value < old ? value : old; });
}
template <class T>
T atomicMax(T* address, cuda_on_cpu::Value<T> value) {
  return cuda_on_cpu::read_modify_write(address, [=](T old) { return old < value ? value : old; });
}
template <class T>
T atomicAnd(T* address, cuda_on_cpu::Value<T> value) {
  return cuda_on_cpu::read_modify_write(address, [=](T old) -> T { return old & value; });
}
template <class T>
T atomicOr(T* address, cuda_on_cpu::Value<T> value) {
  return cuda_on_cpu::read_modify_write(address, [=](T old) -> T { return old | value; });
}
template <class T>
T atomicXor(T* address, cuda_on_cpu::Value<T> value) {
  return cuda_on_cpu::read_modify_write(address, [=](T old) -> T { return old ^ value; });
}
template <class T>
T atomicExch(T* address, cuda_on_cpu::Value<T> value) {
  return cuda_on_cpu::read_modify_write(address, [=](T) -> T { return value; });
}
template <class T>
T atomicCAS(T* address, cuda_on_cpu::Value<T> expected, cuda_on_cpu::Value<T> value) {
  return cuda_on_cpu::read_modify_write(address,
                                        [=](T old) -> T { return old == expected ? value : old; });
}

inline void __threadfence() { cuda_on_cpu::fence(); }
inline void __threadfence_block() { cuda_on_cpu::fence(); }
inline void __threadfence_system() { cuda_on_cpu::fence(); }

template <class T>
T __ldg(const T* address, cuda_on_cpu::Where where = cuda_on_cpu::Where::here()) {
  static_assert(sizeof(T) <= 16);
  const T value = *address;
  cuda_on_cpu::read_only(address, &value, sizeof(T), where);
  return value;
}
// Which other cache a load or store goes through is not modelled.
template <class T>
T __ldcg(const T* address) {
  return *address;
}
template <class T>
T __ldcs(const T* address) {
  return *address;
}
template <class T>
void __stcg(T* address, T value) {
  *address = value;
}
template <class T>
void __stcs(T* address, T value) {
  *address = value;
}

namespace cuda_on_cpu {

// The primitives of csrc/cuda/portable.h.
inline uint32_t load(const uint32_t* address, bool acquires) {
  if (acquires) return __atomic_load_n(address, __ATOMIC_ACQUIRE);
  const uint32_t value = __atomic_load_n(address, __ATOMIC_RELAXED);
  after_relaxed_load(address);
  return value;
}

inline void store_release(uint32_t* address, uint32_t value) {
  __atomic_store_n(address, value, __ATOMIC_RELEASE);
  note_progress();
}

inline uint64_t nanoseconds() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::nanoseconds>(now).count();
}

}  // namespace cuda_on_cpu
