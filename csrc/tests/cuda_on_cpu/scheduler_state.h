// What the scheduler keeps about threads, warps, blocks, workers and the grid.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <unordered_map>
#include <utility>
#include <vector>

#include "cluster.h"
#include "fiber.h"
#include "scheduler.h"

namespace cuda_on_cpu {

struct Barrier;
struct Block;
struct Worker;

enum class State { kRuns, kWaits, kSpins, kEnded };

struct Thread {
  Fiber fiber;
  Block* block = nullptr;
  uint3 index = {};
  unsigned rank = 0, lane = 0, warp = 0;
  State state = State::kRuns;
  // Where it waits, for the report.
  const char* what = nullptr;
  Where where = {};
  uint32_t mask = 0;
  const void* flag = nullptr;
  uint64_t wanted = 0, value = 0;
  const Barrier* waits_at = nullptr;
  // cp.async: what was issued, the sizes of the committed groups and of the open one, and how much
  // of both has been waited for.
  std::vector<Copy> copies;
  std::vector<size_t> groups;
  size_t open_group = 0, landed_copies = 0, landed_groups = 0;
  // The fence model.
  Moment fence;
  std::array<const void*, 32> observed = {};
  unsigned num_observed = 0;
  // The barrier of the cluster.
  bool at_cluster_barrier = false;
  unsigned cluster_generation = 0;
};

// The lanes of one mask meet here. Slots alternate, so that the last meeting's stay readable.
struct Collective {
  uint32_t mask = 0, arrived = 0;
  unsigned generation = 0;
  const char* what = nullptr;
  Where where = {};
  Slot slots[2][32];
  char tags[2];  // addresses for release() and acquire()
};

struct Barrier {
  unsigned arrived = 0, generation = 0;
  BarrierKind kind = BarrierKind::kSync;
  Where where = {};
  unsigned gathered = 0, result = 0;
  char tags[2];
};

struct Warp {
  uint32_t lanes = 0, alive = 0;
  uint32_t at_barrier = 0;  // lanes that wait at `barrier`
  const Barrier* barrier = nullptr;
  Where barrier_where = {};
  std::vector<std::unique_ptr<Collective>> collectives;
};

struct Grid;

// A word that __ldg has read.
struct ReadOnly {
  unsigned char value[16];
  uint32_t bytes;
  Where where;
};

struct Cluster;

// By rank in the cluster: how much of what that block has stored for the others
// (store_for_cluster).
using Told = std::vector<uint32_t>;

struct Block {
  Grid* grid = nullptr;
  Cluster* cluster = nullptr;
  unsigned cluster_rank = 0;
  Told
      told;  // what has been told to it of others' global memory; its own entry counts its tellings
  uint3 index = {};
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  unsigned alive = 0;
  Barrier barrier, first_barrier;
  void* dynamic_shared = nullptr;
  size_t shared_bytes = 0;
  std::vector<std::pair<const void*, void*>> statics;
  char* stacks = nullptr;
};

// An mbarrier of `block`. A phase ends when no arrival is pending and all bytes are issued; what
// was issued for it becomes `complete`, and is landed by the first thread that waits for it.
struct PhaseBarrier {
  const Block* block = nullptr;
  uint32_t count = 0, pending = 0, phase = 0;
  int64_t expected_bytes = 0, issued_bytes = 0;
  std::vector<Landing> issued, complete;
  size_t landing = 0;
  Told told, told_before;  // by the arrivals of the phase, and of the one that is complete
  char tags[2];            // by parity
};

// A word of global memory that block `rank` has stored for the others.
struct StoredForCluster {
  unsigned rank;
  uint32_t tellings;  // that the block had done before
  Where where;
};

// Blocks that reach each other's shared memory; one block by itself in an ordinary launch.
struct Cluster {
  std::vector<Block*> blocks;
  unsigned alive = 0;  // threads
  unsigned arrived = 0, generation = 0;
  char tags[2];
  std::unordered_map<const void*, PhaseBarrier> barriers;
  Told told;  // by those that have arrived at the cluster's barrier
  std::unordered_map<const void*, StoredForCluster> stored;
};

// Threads that can run, first in first out. Its memory is fixed at the start: a thread is never in
// it twice.
class ReadyQueue {
 public:
  void reset(size_t capacity) {
    size_t places = 1;
    while (places < capacity) places *= 2;
    ring_.assign(places, nullptr);
    head_ = size_ = 0;
  }
  size_t size() const { return size_; }
  Thread*& operator[](size_t i) { return ring_[(head_ + i) & (ring_.size() - 1)]; }
  void push(Thread* thread) { (*this)[size_++] = thread; }
  Thread* pop() {
    Thread* thread = (*this)[0];
    ++head_;
    --size_;
    return thread;
  }

 private:
  std::vector<Thread*> ring_;
  size_t head_ = 0, size_ = 0;
};

struct Worker {
  Grid* grid = nullptr;
  Fiber origin;
  std::vector<std::unique_ptr<Block>> resident;
  std::vector<std::unique_ptr<Cluster>> clusters;
  ReadyQueue ready;
  std::vector<Thread*> spinning;
  uint64_t random = 0;
  std::unordered_map<const void*, ReadOnly> read_only;
  // Written by this worker, read by the others.
  std::atomic<uint64_t> progress{0};
  std::atomic<uint64_t> stuck_at{0};  // the grid's progress + 1 when nothing moved any more
  std::atomic<bool> finished{false};
  uint64_t seen = 0;
  int idle_rounds = 0;
};

struct Grid {
  const GridShape* shape = nullptr;
  const Kernel* kernel = nullptr;
  unsigned threads = 0;
  uint64_t blocks = 0;
  std::vector<std::unique_ptr<Worker>> workers;
  std::atomic<uint64_t> next_cluster{0};
  std::atomic<uint32_t> barrier_arrived{0}, barrier_generation{0};
  std::atomic<bool> reported{false};
  char start_tag, end_tag, barrier_tags[2];
};

extern __thread Thread* current;
extern __thread Worker* worker;

// Lets others run; returns when somebody has made the current thread ready again.
void park();
void make_ready(Thread* thread);
// In the order that the schedule asks for.
void make_ready(Thread* const* threads, size_t count);
// Called when a thread has ended: releases barriers and collectives that waited for it.
void leave_barriers(Thread* thread);
void leave_cluster(Thread* thread);

[[noreturn]] void report_deadlock(const Grid& grid, const char* why);

}  // namespace cuda_on_cpu
