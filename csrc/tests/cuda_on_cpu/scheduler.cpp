#include "scheduler.h"

#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <thread>

#include "scheduler_state.h"

__thread uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

__thread Thread* current;
__thread Worker* worker;

namespace {

// Rounds in which every thread of a worker only looked at its flag again.
constexpr int kPatience = 200;

Schedule schedule_from_environment() {
  Schedule result;
  if (const char* order = getenv("CUDA_ON_CPU_ORDER")) {
    const std::string word = order;
    if (word == "reverse") {
      result.order = Order::kReverse;
    } else if (word != "forward") {
      char* end = nullptr;
      result.order = Order::kShuffled;
      result.seed = strtoull(order, &end, 10);
      if (*order == 0 || *end != 0) {
        fail("CUDA_ON_CPU_ORDER: expected forward, reverse or a seed, got %s", order);
      }
    }
  }
  if (const char* workers = getenv("CUDA_ON_CPU_THREADS")) {
    result.workers = atoi(workers);
    if (result.workers < 1) fail("CUDA_ON_CPU_THREADS: expected at least 1, got %s", workers);
  }
  return result;
}

uint64_t next_random(uint64_t& state) {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return state >> 33;
}

uint64_t total_progress(const Grid& grid) {
  uint64_t total = 0;
  for (const auto& other : grid.workers) total += other->progress.load();
  return total;
}

// Every thread of this worker has looked at its flag and found it unset.
void end_of_spinning_round() {
  Grid& grid = *worker->grid;
  const uint64_t progress = total_progress(grid);
  if (progress != worker->seen) {
    worker->seen = progress;
    worker->idle_rounds = 0;
    return;
  }
  if (grid.workers.size() > 1) sched_yield();
  if (++worker->idle_rounds < kPatience) return;
  // A worker that has not looked since the last progress does not count as stuck.
  worker->stuck_at.store(progress + 1);
  for (const auto& other : grid.workers) {
    if (!other->finished.load() && other->stuck_at.load() != progress + 1) return;
  }
  if (total_progress(grid) != progress) return;
  report_deadlock(
      grid, grid.shape->cooperative
                ? "every thread that can run spins on a flag that nobody sets"
                : "every thread that can run spins on a flag that nobody sets; the launch is an "
                  "ordinary one, whose blocks run one after another: one may not wait for "
                  "another, as in a cooperative launch");
}

Thread* next_thread() {
  ReadyQueue& ready = worker->ready;
  if (ready.size() == 0 && !worker->spinning.empty()) {
    end_of_spinning_round();
    make_ready(worker->spinning.data(), worker->spinning.size());
    worker->spinning.clear();
  }
  if (ready.size() == 0) return nullptr;
  if (schedule().order == Order::kShuffled) {
    std::swap(ready[0], ready[next_random(worker->random) % ready.size()]);
  }
  return ready.pop();
}

void set_indices(const Thread& thread) {
  threadIdx = thread.index;
  blockIdx = thread.block->index;
}

void run_next(Fiber& from, bool ends) {
  Thread* self = current;
  Thread* next = next_thread();
  if (next != nullptr && next == self) {
    self->state = State::kRuns;
    return;
  }
  current = next;
  if (next != nullptr) {
    next->state = State::kRuns;
    set_indices(*next);
  }
  switch_fiber(from, next != nullptr ? next->fiber : worker->origin, ends);
}

void thread_main() {
  fiber_started();
  Thread* self = current;
  Grid& grid = *self->block->grid;
  acquire(&grid.start_tag);
  grid.kernel->call(grid.kernel->arguments);
  release(&grid.end_tag);
  if (const size_t left = self->copies.size() - self->landed_copies) {
    fail("the thread ends with %zu cp.async copies that it never waited for", left);
  }
  if (!stack_intact(self->fiber)) {
    fail("the thread overflowed its stack of %zu bytes", stack_bytes());
  }
  self->state = State::kEnded;
  leave_barriers(self);
  leave_cluster(self);
  note_progress();
  run_next(self->fiber, true);
}

std::unique_ptr<Block> make_block(Grid& grid, uint64_t number) {
  const GridShape& shape = *grid.shape;
  auto block = std::make_unique<Block>();
  block->grid = &grid;
  block->index = {static_cast<unsigned>(number % shape.grid.x),
                  static_cast<unsigned>(number / shape.grid.x % shape.grid.y),
                  static_cast<unsigned>(number / shape.grid.x / shape.grid.y)};
  block->threads = std::vector<Thread>(grid.threads);
  block->warps = std::vector<Warp>((grid.threads + 31) / 32);
  block->alive = grid.threads;
  block->stacks = allocate_stacks(grid.threads);
  block->shared_bytes = shape.shared_bytes;
  {
    const Unseen unseen;
    if (posix_memalign(&block->dynamic_shared, 128, std::max<size_t>(shape.shared_bytes, 1)) != 0) {
      fail("no memory for %zu bytes of shared memory", shape.shared_bytes);
    }
    memset(block->dynamic_shared, 0xFF, std::max<size_t>(shape.shared_bytes, 1));
  }
  for (unsigned i = 0; i < grid.threads; ++i) {
    Thread& thread = block->threads[i];
    thread.block = block.get();
    thread.index = {i % shape.block.x, i / shape.block.x % shape.block.y,
                    i / shape.block.x / shape.block.y};
    thread.rank = i;
    thread.lane = i % 32;
    thread.warp = i / 32;
    block->warps[thread.warp].lanes |= 1u << thread.lane;
    block->warps[thread.warp].alive |= 1u << thread.lane;
    make_fiber(thread.fiber, block->stacks + i * stack_bytes(), thread_main);
  }
  return block;
}

// The blocks of cluster `number`, resident on this worker.
void make_cluster(Grid& grid, uint64_t number) {
  const unsigned size = grid.shape->cluster;
  auto cluster = std::make_unique<Cluster>();
  for (unsigned rank = 0; rank < size; ++rank) {
    auto block = make_block(grid, number * size + rank);
    block->cluster = cluster.get();
    block->cluster_rank = rank;
    cluster->blocks.push_back(block.get());
    cluster->alive += grid.threads;
    worker->resident.push_back(std::move(block));
  }
  worker->clusters.push_back(std::move(cluster));
}

void destroy_block(std::unique_ptr<Block> block) {
  const Unseen unseen;
  for (Thread& thread : block->threads) destroy_fiber(thread.fiber);
  free_stacks(block->stacks, block->threads.size());
  free(block->dynamic_shared);
  for (const auto& allocation : block->statics) free(allocation.second);
  block.reset();
}

// Runs the worker's resident blocks to their end.
void run_resident() {
  std::vector<Thread*> threads;
  for (const auto& block : worker->resident) {
    for (Thread& thread : block->threads) threads.push_back(&thread);
  }
  worker->ready.reset(threads.size());
  worker->spinning.clear();
  worker->spinning.reserve(threads.size());
  make_ready(threads.data(), threads.size());
  adopt_current(worker->origin);
  run_next(worker->origin, false);
  current = nullptr;
  for (auto& block : worker->resident) {
    if (block->alive != 0) {
      report_deadlock(*worker->grid, "some threads of a block wait for others that never come");
    }
    destroy_block(std::move(block));
  }
  worker->resident.clear();
  const Unseen unseen;
  worker->clusters.clear();
}

// The number of the cluster that an ordinary launch runs as its i-th.
uint64_t cluster_in_order(uint64_t i, uint64_t clusters) {
  switch (schedule().order) {
    case Order::kReverse:
      return clusters - 1 - i;
    case Order::kShuffled: {
      // Any step that shares no factor with their number visits all of them, if no sum wraps.
      uint64_t step = schedule().seed * 0x9E3779B9u % clusters + 1;
      while (std::gcd(step, clusters) != 1) ++step;
      return (i * step + schedule().seed % clusters) % clusters;
    }
    default:
      return i;
  }
}

void check_read_only(const Worker& done) {
  for (const auto& [address, read] : done.read_only) {
    if (memcmp(address, read.value, read.bytes) != 0) {
      fail(
          "__ldg at %s:%d read memory that the same launch wrote later, through a cache that does "
          "not follow it",
          read.where.file, read.where.line);
    }
  }
}

void work(Grid& grid, size_t number) {
  worker = grid.workers[number].get();
  worker->grid = &grid;
  worker->random = schedule().seed * 0x9E3779B97F4A7C15u + number;
  const GridShape& shape = *grid.shape;
  blockDim = {shape.block.x, shape.block.y, shape.block.z};
  gridDim = {shape.grid.x, shape.grid.y, shape.grid.z};
  const uint64_t clusters = grid.blocks / shape.cluster;
  if (shape.cooperative) {
    for (uint64_t i = number; i < clusters; i += grid.workers.size()) make_cluster(grid, i);
    run_resident();
  } else {
    for (uint64_t i; (i = grid.next_cluster.fetch_add(1)) < clusters;) {
      make_cluster(grid, cluster_in_order(i, clusters));
      run_resident();
    }
  }
  worker->finished.store(true);
  worker = nullptr;
}

}  // namespace

Schedule& schedule() {
  static Schedule value = schedule_from_environment();
  return value;
}

Device& device() {
  static Device value;
  return value;
}

int resident_blocks_per_multiprocessor(unsigned threads, size_t shared_bytes) {
  const Device& card = device();
  const unsigned warps_of_threads = (threads + 31) / 32 * 32;
  const size_t by_threads = card.max_threads_per_multiprocessor / std::max(warps_of_threads, 32u);
  const size_t by_shared =
      card.shared_per_multiprocessor / (shared_bytes + card.shared_reserved_per_block);
  return static_cast<int>(std::min<size_t>(
      {by_threads, by_shared, static_cast<size_t>(card.max_blocks_per_multiprocessor)}));
}

void run_grid(const GridShape& shape, const Kernel& kernel) {
  if (worker != nullptr) fail("a kernel launches a kernel");
  Grid grid;
  grid.shape = &shape;
  grid.kernel = &kernel;
  grid.threads = shape.block.x * shape.block.y * shape.block.z;
  grid.blocks = static_cast<uint64_t>(shape.grid.x) * shape.grid.y * shape.grid.z;
  const uint64_t workers = std::min<uint64_t>(schedule().workers, grid.blocks / shape.cluster);
  for (uint64_t i = 0; i < workers; ++i) grid.workers.push_back(std::make_unique<Worker>());
  release(&grid.start_tag);
  std::vector<std::thread> others;
  for (uint64_t i = 1; i < workers; ++i) others.emplace_back([&grid, i] { work(grid, i); });
  work(grid, 0);
  for (std::thread& other : others) other.join();
  acquire(&grid.end_tag);
  for (const auto& done : grid.workers) check_read_only(*done);
}

void park() {
  Thread* self = current;
  run_next(self->fiber, false);
}

void make_ready(Thread* thread) { worker->ready.push(thread); }

void make_ready(Thread* const* threads, size_t count) {
  const bool reverse = schedule().order == Order::kReverse;
  for (size_t i = 0; i < count; ++i) make_ready(threads[reverse ? count - 1 - i : i]);
}

void note_progress() {
  worker->progress.store(worker->progress.load(std::memory_order_relaxed) + 1,
                         std::memory_order_relaxed);
}

void spin(const char* what, const void* flag, uint64_t wanted, uint64_t value, Where where) {
  Thread* self = current;
  self->state = State::kSpins;
  self->what = what;
  self->flag = flag;
  self->wanted = wanted;
  self->value = value;
  self->where = where;
  worker->spinning.push_back(self);
  park();
}

unsigned rank_in_block() { return current->rank; }
unsigned lane() { return current->lane; }
unsigned threads_in_block() { return current->block->grid->threads; }

}  // namespace cuda_on_cpu
