// Block barriers and warp collectives under their CUDA names.
//
// Only __syncwarp and the block barriers order memory; a shuffle or a vote moves its value and
// orders nothing, as the CUDA programming guide says. This is stricter than a GPU in one point: a
// mask may not name a lane that has exited.
#pragma once

#include <stdio.h>
#include <string.h>

#include <type_traits>

#include "scheduler.h"

inline void __syncthreads(cuda_on_cpu::Where where = cuda_on_cpu::Where::here()) {
  cuda_on_cpu::block_barrier(cuda_on_cpu::BarrierKind::kSync, false, where);
}
inline int __syncthreads_and(int predicate, cuda_on_cpu::Where where = cuda_on_cpu::Where::here()) {
  return cuda_on_cpu::block_barrier(cuda_on_cpu::BarrierKind::kAnd, predicate != 0, where);
}
inline int __syncthreads_or(int predicate, cuda_on_cpu::Where where = cuda_on_cpu::Where::here()) {
  return cuda_on_cpu::block_barrier(cuda_on_cpu::BarrierKind::kOr, predicate != 0, where);
}
inline int __syncthreads_count(int predicate,
                               cuda_on_cpu::Where where = cuda_on_cpu::Where::here()) {
  return cuda_on_cpu::block_barrier(cuda_on_cpu::BarrierKind::kCount, predicate != 0, where);
}

inline void __syncwarp(unsigned mask = ~0u, cuda_on_cpu::Where where = cuda_on_cpu::Where::here()) {
  cuda_on_cpu::meet(mask, "__syncwarp", nullptr, 0, true, where);
}

[[noreturn]] inline void __trap() {
  fflush(stdout);  // what the kernel has printed
  cuda_on_cpu::fail("__trap");
}

inline void __nanosleep(unsigned, cuda_on_cpu::Where where = cuda_on_cpu::Where::here()) {
  cuda_on_cpu::spin("__nanosleep", nullptr, 0, 0, where);
}

namespace cuda_on_cpu {

template <class T>
T from_slot(const Slot& slot) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(Slot));
  T value;
  memcpy(&value, slot.bytes, sizeof(T));
  return value;
}

// The value of the lane `source(lane within its segment)`; outside the segment a lane gets its own.
template <class T, class Source>
T shuffle(const char* what, unsigned mask, T value, int width, Where where, Source source) {
  static_assert(sizeof(T) <= 8, "CUDA shuffles 4 or 8 bytes");
  if (width < 1 || width > 32 || (width & (width - 1)) != 0) {
    fail("%s at %s:%d: width %d is not a power of two up to 32", what, where.file, where.line,
         width);
  }
  const Slot* slots = meet(mask, what, &value, sizeof(T), false, where);
  const int self = static_cast<int>(lane()), in_segment = self & (width - 1);
  const int wanted = source(in_segment);
  const bool inside = wanted >= 0 && wanted < width;
  const int from = inside ? self - in_segment + wanted : self;
  if ((mask >> from & 1) == 0) {
    fail("%s at %s:%d: reads lane %d, which is not in the mask 0x%08x", what, where.file,
         where.line, from, mask);
  }
  return from_slot<T>(slots[from]);
}

template <class Result, class T, class Fold>
Result fold(const char* what, unsigned mask, T value, Result result, Where where, Fold combine) {
  const Slot* slots = meet(mask, what, &value, sizeof(T), false, where);
  for (unsigned i = 0; i < 32; ++i) {
    if ((mask >> i & 1) != 0) result = combine(result, from_slot<T>(slots[i]), i);
  }
  return result;
}

}  // namespace cuda_on_cpu

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32,
              cuda_on_cpu::Where where = cuda_on_cpu::Where::here()) {
  return cuda_on_cpu::shuffle("__shfl_sync", mask, value, width, where,
                              [=](int) { return source & (width - 1); });
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32,
                  cuda_on_cpu::Where where = cuda_on_cpu::Where::here()) {
  return cuda_on_cpu::shuffle("__shfl_xor_sync", mask, value, width, where,
                              [=](int lane) { return lane ^ lane_mask; });
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   cuda_on_cpu::Where where = cuda_on_cpu::Where::here()) {
  return cuda_on_cpu::shuffle("__shfl_down_sync", mask, value, width, where,
                              [=](int lane) { return lane + static_cast<int>(delta); });
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 cuda_on_cpu::Where where = cuda_on_cpu::Where::here()) {
  return cuda_on_cpu::shuffle("__shfl_up_sync", mask, value, width, where,
                              [=](int lane) { return lane - static_cast<int>(delta); });
}

inline unsigned __ballot_sync(unsigned mask, int predicate,
                              cuda_on_cpu::Where where = cuda_on_cpu::Where::here()) {
  return cuda_on_cpu::fold("__ballot_sync", mask, predicate, 0u, where,
                           [](unsigned votes, int vote, unsigned lane) {
                             return votes | (vote != 0 ? 1u << lane : 0u);
                           });
}
inline int __any_sync(unsigned mask, int predicate,
                      cuda_on_cpu::Where where = cuda_on_cpu::Where::here()) {
  return cuda_on_cpu::fold("__any_sync", mask, predicate, 0, where,
                           [](int any, int vote, unsigned) { return int{any != 0 || vote != 0}; });
}
inline int __all_sync(unsigned mask, int predicate,
                      cuda_on_cpu::Where where = cuda_on_cpu::Where::here()) {
  return cuda_on_cpu::fold("__all_sync", mask, predicate, 1, where,
                           [](int all, int vote, unsigned) { return int{all != 0 && vote != 0}; });
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value,
                          cuda_on_cpu::Where where = cuda_on_cpu::Where::here()) {
  return cuda_on_cpu::fold("__match_any_sync", mask, value, 0u, where,
                           [value](unsigned equal, T other, unsigned lane) {
                             return equal | (other == value ? 1u << lane : 0u);
                           });
}

// The reductions exist only for 32-bit integers, from compute capability 8.0.
#define CUDA_ON_CPU_REDUCE(name, type, expression)                                  \
  inline type name(unsigned mask, type value,                                       \
                   cuda_on_cpu::Where where = cuda_on_cpu::Where::here()) {         \
    bool first = true;                                                              \
    return cuda_on_cpu::fold(#name, mask, value, type{}, where,                     \
                             [&first](type a, type b, unsigned) -> type {           \
                               const bool is_first = first;                         \
                               first = false;                                       \
                               return is_first ? b : static_cast<type>(expression); \
                             });                                                    \
  }
CUDA_ON_CPU_REDUCE(__reduce_add_sync, unsigned, a + b)
CUDA_ON_CPU_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
CUDA_ON_CPU_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
CUDA_ON_CPU_REDUCE(__reduce_add_sync, int, static_cast<unsigned>(a) + static_cast<unsigned>(b))
CUDA_ON_CPU_REDUCE(__reduce_min_sync, int, a < b ? a : b)
CUDA_ON_CPU_REDUCE(__reduce_max_sync, int, a > b ? a : b)
CUDA_ON_CPU_REDUCE(__reduce_and_sync, unsigned, a& b)
CUDA_ON_CPU_REDUCE(__reduce_or_sync, unsigned, a | b)
CUDA_ON_CPU_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
#undef CUDA_ON_CPU_REDUCE
