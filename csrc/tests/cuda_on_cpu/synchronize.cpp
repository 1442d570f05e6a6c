// Barriers, warp collectives and matrix products, fences, shared memory and cp.async queues of the
// running thread.
#include <stdlib.h>
#include <string.h>

#include <algorithm>

#include "matrix.h"
#include "scheduler_state.h"

namespace cuda_on_cpu {
namespace {

bool same(const Where& a, const Where& b) {
  return a.line == b.line && (a.file == b.file || strcmp(a.file, b.file) == 0);
}

void wait_at(const char* what, uint32_t mask, const Barrier* barrier, Where where) {
  Thread* self = current;
  self->state = State::kWaits;
  self->what = what;
  self->mask = mask;
  self->waits_at = barrier;
  self->where = where;
  park();
  self->waits_at = nullptr;
}

// Completes the phase: all that wait here may run again.
void complete(Barrier& barrier, Block& block) {
  barrier.result = barrier.gathered;
  barrier.arrived = 0;
  barrier.gathered = 0;
  ++barrier.generation;
  note_progress();
  const bool reverse = schedule().order == Order::kReverse;
  const size_t count = block.threads.size();
  for (size_t i = 0; i < count; ++i) {
    Thread& thread = block.threads[reverse ? count - 1 - i : i];
    if (thread.state == State::kWaits && thread.waits_at == &barrier) {
      thread.state = State::kRuns;
      make_ready(&thread);
    }
  }
}

void complete_block_barrier(Barrier& barrier, Block& block) {
  for (Warp& warp : block.warps) {
    if (warp.barrier == &barrier) warp.at_barrier = 0;
  }
  complete(barrier, block);
}

const char* name_of(BarrierKind kind) {
  switch (kind) {
    case BarrierKind::kAnd:
      return "__syncthreads_and";
    case BarrierKind::kOr:
      return "__syncthreads_or";
    case BarrierKind::kCount:
      return "__syncthreads_count";
    case BarrierKind::kFirst:
      return "sync_first";
    default:
      return "__syncthreads";
  }
}

// Meets `count` threads, the caller included.
unsigned meet_at(Barrier& barrier, unsigned count, BarrierKind kind, bool predicate, Where where) {
  Thread* self = current;
  Block& block = *self->block;
  Warp& warp = block.warps[self->warp];
  if (warp.at_barrier == 0) {
    warp.barrier = &barrier;
    warp.barrier_where = where;
  } else if (!same(warp.barrier_where, where)) {
    // The instruction is an aligned one: all lanes of a warp execute the same.
    fail("threads of one warp meet different barriers: %s at %s:%d, others at %s:%d", name_of(kind),
         where.file, where.line, warp.barrier_where.file, warp.barrier_where.line);
  }
  warp.at_barrier |= 1u << self->lane;
  if (barrier.arrived == 0) {
    barrier.kind = kind;
    barrier.where = where;
    barrier.gathered = kind == BarrierKind::kAnd;
  } else if (barrier.kind != kind) {
    fail("threads of one block meet different barriers: %s at %s:%d, %s at %s:%d", name_of(kind),
         where.file, where.line, name_of(barrier.kind), barrier.where.file, barrier.where.line);
  }
  if (kind == BarrierKind::kAnd) barrier.gathered &= predicate;
  if (kind == BarrierKind::kOr) barrier.gathered |= predicate;
  if (kind == BarrierKind::kCount) barrier.gathered += predicate;
  char* tag = &barrier.tags[barrier.generation & 1];
  release(tag);
  if (++barrier.arrived == count) {
    complete_block_barrier(barrier, block);
  } else {
    wait_at(name_of(kind), 0, &barrier, where);
  }
  acquire(tag);
  return barrier.result;
}

}  // namespace

unsigned block_barrier(BarrierKind kind, bool predicate, Where where) {
  Block& block = *current->block;
  return meet_at(block.barrier, block.alive, kind, predicate, where);
}

void barrier_of_first(unsigned threads, Where where) {
  Block& block = *current->block;
  if (threads == 0 || threads % 32 != 0 || threads > block.threads.size()) {
    fail("sync_first at %s:%d: %u threads, expected whole warps of the block's %zu", where.file,
         where.line, threads, block.threads.size());
  }
  if (current->rank >= threads) {
    fail("sync_first at %s:%d: thread %u is not one of the first %u", where.file, where.line,
         current->rank, threads);
  }
  meet_at(block.first_barrier, threads, BarrierKind::kFirst, false, where);
}

void grid_barrier(Where where) {
  Grid& grid = *current->block->grid;
  if (!grid.shape->cooperative) fail("grid.sync() in a launch that is not cooperative");
  block_barrier(BarrierKind::kSync, false, where);
  if (current->rank == 0) {
    const uint32_t generation = grid.barrier_generation.load();
    char* tag = &grid.barrier_tags[generation & 1];
    release(tag);
    if (grid.barrier_arrived.fetch_add(1) + 1 == grid.blocks) {
      grid.barrier_arrived.store(0);
      grid.barrier_generation.fetch_add(1);
      note_progress();
    }
    while (grid.barrier_generation.load() == generation) {
      spin("grid.sync()", nullptr, grid.blocks, grid.barrier_arrived.load(), where);
    }
    acquire(tag);
  }
  block_barrier(BarrierKind::kSync, false, where);
}

const Slot* meet(uint32_t mask, const char* what, const void* value, size_t bytes,
                 bool orders_memory, Where where) {
  Thread* self = current;
  Warp& warp = self->block->warps[self->warp];
  if ((mask >> self->lane & 1) == 0) {
    fail("%s at %s:%d: the lane is not in the mask 0x%08x it calls with", what, where.file,
         where.line, mask);
  }
  if ((mask & ~warp.lanes) != 0) {
    fail("%s at %s:%d: the mask 0x%08x names lanes that the block does not have (0x%08x are there)",
         what, where.file, where.line, mask, warp.lanes);
  }
  if ((mask & ~warp.alive) != 0) {
    fail("%s at %s:%d: the mask 0x%08x names lanes that have exited (0x%08x are alive)", what,
         where.file, where.line, mask, warp.alive);
  }
  Collective* collective = nullptr;
  for (const auto& known : warp.collectives) {
    if (known->mask == mask) collective = known.get();
  }
  if (collective == nullptr) {
    const Unseen unseen;
    warp.collectives.push_back(std::make_unique<Collective>());
    collective = warp.collectives.back().get();
    collective->mask = mask;
  }
  if (collective->arrived == 0) {
    collective->what = what;
    collective->where = where;
  } else if (collective->what != what || !same(collective->where, where)) {
    fail("lanes of one warp meet different collectives: %s at %s:%d, others %s at %s:%d", what,
         where.file, where.line, collective->what, collective->where.file, collective->where.line);
  }
  const unsigned phase = collective->generation & 1;
  Slot* slots = collective->slots[phase];
  // A loop, because ThreadSanitizer would see memcpy.
  for (size_t i = 0; i < bytes; ++i) {
    reinterpret_cast<volatile unsigned char*>(slots[self->lane].bytes)[i] =
        static_cast<const unsigned char*>(value)[i];
  }
  if (orders_memory) release(&collective->tags[phase]);
  collective->arrived |= 1u << self->lane;
  if (collective->arrived == mask) {
    collective->arrived = 0;
    ++collective->generation;
    note_progress();
    const bool reverse = schedule().order == Order::kReverse;
    for (unsigned i = 0; i < 32; ++i) {
      const unsigned other = reverse ? 31 - i : i;
      if ((mask >> other & 1) != 0 && other != self->lane) {
        make_ready(&self->block->threads[self->warp * 32 + other]);
      }
    }
  } else {
    wait_at(what, mask, nullptr, where);
  }
  if (orders_memory) acquire(&collective->tags[phase]);
  return slots;
}

namespace {

struct Operands {
  uint32_t a[4], b[2];
};

float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof(value));
  return value;
}

// d += a b over `steps` quarters of k. Lane 4 g + t holds rows g and g + 8 of a and column g of b,
// and of each half of k the t-th quarter; `element(word, i)` is a word's i-th element.
template <int kPerWord, class Sum, class Element>
void multiply(const Slot* slots, Sum (&d)[4], Element element) {
  const auto lane_of = [&](unsigned i) -> const Operands& {
    return *reinterpret_cast<const Operands*>(slots[i].bytes);
  };
  const unsigned group = current->lane / 4, in_group = current->lane % 4;
  for (int half = 0; half < 2; ++half) {
    for (unsigned t = 0; t < 4; ++t) {
      const Operands& rows = lane_of(group * 4 + t);
      const Operands* const columns[2] = {&lane_of(in_group * 8 + t),
                                          &lane_of(in_group * 8 + 4 + t)};
      for (int i = 0; i < kPerWord; ++i) {
        for (int output = 0; output < 4; ++output) {
          d[output] +=
              element(rows.a[output / 2 + 2 * half], i) * element(columns[output % 2]->b[half], i);
        }
      }
    }
  }
}

}  // namespace

void mma_m16n8k16_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where) {
  const Operands own = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const Slot* slots = meet(~0u, "mma.m16n8k16", &own, sizeof(own), false, where);
  multiply<2>(slots, d, [](uint32_t pair, int i) {
    return float_of(i != 0 ? pair & 0xFFFF0000u : pair << 16);
  });
}

void mma_m16n8k8_tf32(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Where where) {
  const Operands own = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  const Slot* slots = meet(~0u, "mma.m16n8k8", &own, sizeof(own), false, where);
  multiply<1>(slots, d, [](uint32_t word, int) { return float_of(word & 0xFFFFE000u); });
}

void leave_barriers(Thread* thread) {
  Block& block = *thread->block;
  Warp& warp = block.warps[thread->warp];
  warp.alive &= ~(1u << thread->lane);
  --block.alive;
  for (const auto& collective : warp.collectives) {
    if (collective->arrived != 0 && (collective->mask >> thread->lane & 1) != 0) {
      fail("the thread exits while lanes of its warp wait for it: %s at %s:%d, mask 0x%08x",
           collective->what, collective->where.file, collective->where.line, collective->mask);
    }
  }
  // A thread that has exited counts as arrived, as on a GPU since Volta.
  if (block.barrier.arrived != 0 && block.barrier.arrived == block.alive) {
    release(&block.barrier.tags[block.barrier.generation & 1]);
    complete_block_barrier(block.barrier, block);
  }
}

void* dynamic_shared() { return current->block->dynamic_shared; }

void* static_shared(const void* key, size_t bytes) {
  Block& block = *current->block;
  for (const auto& known : block.statics) {
    if (known.first == key) return known.second;
  }
  const Unseen unseen;
  block.shared_bytes += bytes;
  const Grid& grid = *block.grid;
  if (block.shared_bytes > grid.shape->shared_limit) {
    fail("the block's static and dynamic shared memory, %zu bytes, exceed the limit of %zu",
         block.shared_bytes, grid.shape->shared_limit);
  }
  const uint64_t resident = static_cast<uint64_t>(device().multiprocessors) *
                            resident_blocks_per_multiprocessor(grid.threads, block.shared_bytes);
  if (grid.shape->cooperative && grid.blocks > resident) {
    fail(
        "with %zu bytes of static and dynamic shared memory no more than %llu blocks are resident; "
        "the cooperative launch has %llu",
        block.shared_bytes, static_cast<unsigned long long>(resident),
        static_cast<unsigned long long>(grid.blocks));
  }
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, bytes) != 0) fail("no memory for a shared array");
  memset(memory, 0xFF, bytes);
  block.statics.emplace_back(key, memory);
  return memory;
}

void fence() {
  Thread* self = current;
  for (unsigned i = 0; i < self->num_observed; ++i) {
    acquire(const_cast<void*>(self->observed[i]));
  }
  self->num_observed = 0;
  self->fence.take();
}

void before_relaxed_store(void* address) { current->fence.release_to(address); }

void after_relaxed_load(const void* address) {
  Thread* self = current;
  const auto end = self->observed.begin() + self->num_observed;
  if (std::find(self->observed.begin(), end, address) != end) return;
  if (self->num_observed < self->observed.size()) self->observed[self->num_observed++] = address;
}

void read_only(const void* address, const void* value, uint32_t bytes, Where where) {
  if (!under_asan()) return;
  ReadOnly& read = worker->read_only[address];
  if (read.bytes != 0) return;
  memcpy(read.value, value, bytes);
  read.bytes = bytes;
  read.where = where;
}

void push_copy(const Copy& copy) {
  const Unseen unseen;
  current->copies.push_back(copy);
  ++current->open_group;
}

void commit_copies() {
  const Unseen unseen;
  current->groups.push_back(current->open_group);
  current->open_group = 0;
}

bool pop_copy(size_t groups, Copy& copy) {
  Thread* self = current;
  while (self->groups.size() - self->landed_groups > groups) {
    size_t& group = self->groups[self->landed_groups];
    if (group == 0) {
      ++self->landed_groups;
      continue;
    }
    --group;
    copy = self->copies[self->landed_copies++];
    return true;
  }
  if (self->landed_copies == self->copies.size()) {
    self->copies.clear();
    self->landed_copies = 0;
  }
  if (self->landed_groups == self->groups.size()) {
    self->groups.clear();
    self->landed_groups = 0;
  }
  return false;
}

}  // namespace cuda_on_cpu
