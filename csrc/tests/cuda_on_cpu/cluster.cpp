#include "cluster.h"

#include <algorithm>

#include "scheduler_state.h"

namespace cuda_on_cpu {
namespace {

constexpr int64_t kMostBytes = (1 << 20) - 1;  // of a phase, by the PTX manual

PhaseBarrier& barrier_at(const uint64_t* word, const char* what, Where where) {
  Cluster& cluster = *current->block->cluster;
  const auto found = cluster.barriers.find(word);
  if (found == cluster.barriers.end()) {
    fail("%s at %s:%d: no barrier was initialised there", what, where.file, where.line);
  }
  return found->second;
}

// The later of both, for each block.
void learn(Told& told, const Told& more) {
  const Unseen unseen;
  told.resize(std::max(told.size(), more.size()));
  for (size_t rank = 0; rank < more.size(); ++rank) told[rank] = std::max(told[rank], more[rank]);
}

// Tells what the current block has stored, and what it has been told.
void tell(Told& told) {
  Block& own = *current->block;
  {
    const Unseen unseen;
    own.told.resize(own.cluster->blocks.size());
  }
  ++own.told[own.cluster_rank];
  learn(told, own.told);
}

// Ends the phase if all that it waits for is there.
void end_phase(PhaseBarrier& barrier, Where where) {
  if (barrier.pending != 0 || barrier.issued_bytes != barrier.expected_bytes) return;
  if (!barrier.complete.empty()) {
    fail("at %s:%d the barrier's phase %u ends, and nobody has waited for the copies of phase %u",
         where.file, where.line, barrier.phase, barrier.phase - 1);
  }
  const Unseen unseen;
  barrier.complete.swap(barrier.issued);
  barrier.landing = 0;
  barrier.told_before = barrier.told;
  barrier.pending = barrier.count;
  barrier.expected_bytes = barrier.issued_bytes = 0;
  ++barrier.phase;
  note_progress();
}

void end_cluster_phase(Cluster& cluster) {
  cluster.arrived = 0;
  ++cluster.generation;
  note_progress();
}

bool inside(const Block& block, const void* p, size_t bytes) {
  const char* const first = static_cast<const char*>(block.dynamic_shared);
  const char* const at = static_cast<const char*>(p);
  return at >= first && at + bytes <= first + block.grid->shape->shared_bytes;
}

}  // namespace

int cluster_rank() { return static_cast<int>(current->block->cluster_rank); }
int cluster_blocks() { return static_cast<int>(current->block->cluster->blocks.size()); }

void arrive_at_cluster(Where where) {
  Thread* self = current;
  Cluster& cluster = *self->block->cluster;
  if (self->at_cluster_barrier) {
    fail("cluster_arrive at %s:%d: the thread has arrived and not waited", where.file, where.line);
  }
  self->at_cluster_barrier = true;
  self->cluster_generation = cluster.generation;
  release(&cluster.tags[cluster.generation & 1]);
  tell(cluster.told);
  if (++cluster.arrived == cluster.alive) end_cluster_phase(cluster);
}

void wait_at_cluster(Where where) {
  Thread* self = current;
  Cluster& cluster = *self->block->cluster;
  if (!self->at_cluster_barrier) {
    fail("cluster_wait at %s:%d: the thread has not arrived", where.file, where.line);
  }
  while (cluster.generation == self->cluster_generation) {
    spin("cluster_wait", nullptr, cluster.alive, cluster.arrived, where);
  }
  self->at_cluster_barrier = false;
  learn(self->block->told, cluster.told);
  acquire(&cluster.tags[self->cluster_generation & 1]);
}

void* in_cluster(const void* p, size_t bytes, int rank, const char* what, Where where) {
  const Block& own = *current->block;
  const Cluster& cluster = *own.cluster;
  if (rank < 0 || rank >= static_cast<int>(cluster.blocks.size())) {
    fail("%s at %s:%d: block %d of a cluster of %zu", what, where.file, where.line, rank,
         cluster.blocks.size());
  }
  if (!inside(own, p, bytes)) {
    fail("%s at %s:%d: %p is not in the block's dynamic shared memory", what, where.file,
         where.line, p);
  }
  const Block& other = *cluster.blocks[rank];
  if (other.alive == 0) {
    fail("%s at %s:%d: block %d of the cluster has exited, its shared memory is gone", what,
         where.file, where.line, rank);
  }
  const auto offset = static_cast<const char*>(p) - static_cast<const char*>(own.dynamic_shared);
  return static_cast<char*>(other.dynamic_shared) + offset;
}

void note_stored(const void* p, Where where) {
  const Unseen unseen;
  const Block& own = *current->block;
  const uint32_t tellings = own.told.empty() ? 0 : own.told[own.cluster_rank];
  own.cluster->stored[p] = {own.cluster_rank, tellings, where};
}

void check_told(const void* p, Where where) {
  const Block& own = *current->block;
  const auto found = own.cluster->stored.find(p);
  if (found == own.cluster->stored.end() || found->second.rank == own.cluster_rank) return;
  const StoredForCluster& stored = found->second;
  if (own.told.empty() || own.told[stored.rank] <= stored.tellings) {
    fail("at %s:%d: block %u of the cluster has stored %p at %s:%d and has not told this block",
         where.file, where.line, stored.rank, p, stored.where.file, stored.where.line);
  }
}

void begin_barrier(const uint64_t* word, uint32_t count, Where where) {
  const Unseen unseen;
  if (!inside(*current->block, word, sizeof(*word)) ||
      reinterpret_cast<uintptr_t>(word) % sizeof(*word) != 0) {
    fail("mbarrier.init at %s:%d: %p is not 8 aligned bytes of the block's dynamic shared memory",
         where.file, where.line, static_cast<const void*>(word));
  }
  if (count == 0 || count > static_cast<uint32_t>(kMostBytes)) {
    fail("mbarrier.init at %s:%d: a count of %u", where.file, where.line, count);
  }
  const auto made = current->block->cluster->barriers.try_emplace(word);
  if (!made.second) {
    fail("mbarrier.init at %s:%d: initialised a second time", where.file, where.line);
  }
  made.first->second.block = current->block;
  made.first->second.count = made.first->second.pending = count;
}

void count_arrival(const uint64_t* word, uint32_t expected_bytes, Where where) {
  PhaseBarrier& barrier = barrier_at(word, "an arrival", where);
  barrier.expected_bytes += expected_bytes;
  if (barrier.expected_bytes > kMostBytes) {
    fail("an arrival at %s:%d: the phase expects %lld bytes, more than %lld", where.file,
         where.line, static_cast<long long>(barrier.expected_bytes),
         static_cast<long long>(kMostBytes));
  }
  if (barrier.pending == 0) {
    fail("an arrival at %s:%d: the barrier's phase %u has had all of its %u arrivals", where.file,
         where.line, barrier.phase, barrier.count);
  }
  --barrier.pending;
  if (barrier.block != current->block) tell(barrier.told);
  release(&barrier.tags[barrier.phase & 1]);
  end_phase(barrier, where);
}

void issue(const uint64_t* word, const Landing& landing, Where where) {
  PhaseBarrier& barrier = barrier_at(word, "an asynchronous copy", where);
  {
    const Unseen unseen;
    barrier.issued.push_back(landing);
  }
  barrier.issued_bytes += landing.bytes;
  release(&barrier.tags[barrier.phase & 1]);
  end_phase(barrier, where);
}

bool complete_phase(const uint64_t* word, uint32_t parity, Where where) {
  PhaseBarrier& barrier = barrier_at(word, "wait_for_phase", where);
  if (barrier.block != current->block) {
    fail("wait_for_phase at %s:%d: the barrier is another block's", where.file, where.line);
  }
  if ((barrier.phase & 1) == parity) return false;
  learn(current->block->told, barrier.told_before);
  acquire(&barrier.tags[parity]);
  return true;
}

bool take_landing(const uint64_t* word, Landing& landing) {
  PhaseBarrier& barrier = current->block->cluster->barriers.at(word);
  if (barrier.landing == barrier.complete.size()) {
    barrier.complete.clear();
    barrier.landing = 0;
    return false;
  }
  landing = barrier.complete[barrier.landing++];
  return true;
}

void landed(const uint64_t* word, uint32_t parity) {
  release(&current->block->cluster->barriers.at(word).tags[parity]);
}

void leave_cluster(Thread* thread) {
  Block& block = *thread->block;
  Cluster& cluster = *block.cluster;
  if (thread->at_cluster_barrier) fail("the thread exits between cluster_arrive and cluster_wait");
  // A thread that has exited counts as arrived.
  --cluster.alive;
  if (cluster.arrived != 0 && cluster.arrived == cluster.alive) end_cluster_phase(cluster);
  if (block.alive != 0) return;
  for (const auto& [word, barrier] : cluster.barriers) {
    if (barrier.block != &block) continue;
    if (const size_t left = barrier.issued.size() + barrier.complete.size()) {
      fail("the block exits, and %zu asynchronous copies into it were never waited for", left);
    }
  }
}

}  // namespace cuda_on_cpu
