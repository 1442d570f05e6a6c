// Threads that run one function in parallel and meet at barriers, for the duration of one draw.
// They are those of the process's pool if it has as many, else new ones.
//
// A position of the map has about thirty points where all threads must meet, a few microseconds
// apart, so they spin there. A thread that waits for long yields, then sleeps, so as not to slow
// down a crowded machine further. Of the threads 0..size-1 the first `active` take part; the others
// sleep, so that a draw can use fewer where the system does not run them all (pace.h).
#pragma once

#include <sched.h>
#include <stdint.h>
#include <time.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "../float_mode.h"
#include "../thread_pool.h"

namespace vqvae2_fast::cpu::sampler {

struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};

class Team {
 public:
  explicit Team(int size) : size_(size), state_(static_cast<uint32_t>(size)), wanted_(size) {}
  int size() const { return size_; }
  int active() const { return active_of(state_.load(std::memory_order_acquire)); }
  // After the barrier of `set_active`: whether the thread still takes part. A thread that has left
  // may call this even after `close`, so `closed_` is read after `active()`. A thread that stays
  // must not call it again at the end of a row: thread 0 may have closed the team by then.
  bool is_active(int thread) const { return thread < active() && !closed_; }

  // Before `run`: how many take part at first.
  void start_with(int count) {
    wanted_ = count;
    state_.store(static_cast<uint32_t>(count), std::memory_order_relaxed);
  }
  // Thread 0 calls this before a barrier after which all threads look at `is_active`: how many take
  // part from then on. They may be more than now only if those that sleep have all noticed.
  void set_active(int count) { wanted_ = count; }
  bool all_asleep() const { return asleep_.load(std::memory_order_acquire) == size_ - active(); }
  // Thread 0 calls this before a barrier after which nobody takes part.
  void close() {
    closed_ = true;
    wanted_ = size_;
  }
  // Sleeps until the thread takes part; false if the team was closed.
  bool takes_part(int thread) {
    uint32_t calls = calls_.load(std::memory_order_acquire);
    if (thread >= active()) {
      asleep_.fetch_add(1, std::memory_order_release);
      while (thread >= active()) {
        calls_.wait(calls, std::memory_order_acquire);
        calls = calls_.load(std::memory_order_acquire);
      }
      asleep_.fetch_sub(1, std::memory_order_relaxed);
    }
    return !closed_;
  }

  // Calls function(thread) for 0..size-1 in parallel, with thread 0 on the calling thread. The
  // function must not throw. Throws std::runtime_error if the system does not start all threads;
  // the function has not been called then.
  template <typename Function>
  void run(const Function& function) {
    if (!run_in_pool(function)) run_on_new_threads(function);
  }

  // Every active thread calls this inside `run`: what was written before it is seen by all
  // afterwards.
  void barrier() {
    const uint64_t state = state_.load(std::memory_order_acquire);
    const int active = active_of(state);
    if (active == 1 || arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == active) {
      arrived_.store(0, std::memory_order_relaxed);
      next_.store(0, std::memory_order_relaxed);
      const uint64_t generation = (state >> 32) + 1;
      const int wanted = wanted_;  // after the next line, thread 0 may change it
      state_.store(generation << 32 | static_cast<uint32_t>(wanted), std::memory_order_release);
      if (wanted > active) {
        calls_.fetch_add(1, std::memory_order_release);
        calls_.notify_all();
      }
      return;
    }
    for (int64_t tries = 0; state_.load(std::memory_order_acquire) == state; ++tries) {
      if (tries < kSpins) {
        pause();
      } else if (tries < kSpins + kYields) {
        sched_yield();
      } else {
        nap();
      }
    }
  }

  static void nap() {
    const timespec duration = {0, kNapNanoseconds};
    nanosleep(&duration, nullptr);
  }

  // Every active thread calls this inside `run`: each of item(0..count-1) goes to whichever thread
  // is free. Ends with a barrier.
  template <typename Item>
  void share(int64_t count, const Item& item) {
    for (;;) {
      const int64_t index = next_.fetch_add(1, std::memory_order_relaxed);
      if (index >= count) break;
      item(index);
    }
    barrier();
  }

 private:
  // How long the pool's threads may take to come, in seconds. They may wait for other work.
  static constexpr double kLongestWait = 1.0;
  static constexpr int kRefused = -1;

  // False if the pool does not run all at the same time; the function has not been called then.
  template <typename Function>
  bool run_in_pool(const Function& function) {
    const ThreadPool& pool = thread_pool();
    if (size_ == 1 || !pool.run_parts || pool.size() != size_) return false;
    make_sure_of_room();
    std::atomic<int> present{0};
    pool.run_parts(size_, [&](int64_t first, int64_t last) {
      if (last - first > 1) present = kRefused;  // inside another parallel region, for example
      if (!all_present(present)) return;
      const DefaultFloats mode;
      function(static_cast<int>(first));
    });
    return present == size_;
  }

  // Called by each thread of the pool: waits until all have called it, unless one has refused.
  bool all_present(std::atomic<int>& present) const {
    int seen = present;
    while (seen != kRefused && !present.compare_exchange_weak(seen, seen + 1)) {
    }
    const auto start = std::chrono::steady_clock::now();
    for (int64_t tries = 0; (seen = present) != kRefused && seen != size_; ++tries) {
      if (tries < kSpins) {
        pause();
        continue;
      }
      sched_yield();
      const std::chrono::duration<double> waited = std::chrono::steady_clock::now() - start;
      if (waited.count() > kLongestWait) present.compare_exchange_strong(seen, kRefused);
    }
    return seen == size_;
  }

  // GNU OpenMP ends the process if the system does not start a thread, so this tries first.
  void make_sure_of_room() const {
    static thread_local int most = 1;  // the largest team of the calling thread so far
    if (size_ <= most) return;
    Team(size_).run_on_new_threads([](int) {});
    most = size_;
  }

  template <typename Function>
  void run_on_new_threads(const Function& function) {
    const DefaultFloats mode;  // which the other threads inherit
    std::vector<std::thread> others;
    std::mutex gate;  // held until all threads have started: none may wait for one that never will
    std::unique_lock<std::mutex> closed(gate);
    bool complete = false;
    const auto join = [&] {
      closed.unlock();
      if (complete) function(0);
      for (std::thread& other : others) other.join();
    };
    try {
      others.reserve(static_cast<size_t>(size_ - 1));
      for (int thread = 1; thread < size_; ++thread) {
        others.emplace_back([&, thread] {
          {
            const std::lock_guard<std::mutex> open(gate);
          }
          if (complete) function(thread);
        });
      }
    } catch (const std::system_error& error) {
      join();
      throw std::runtime_error("engine cpu: the system started " + std::to_string(others.size()) +
                               " of " + std::to_string(size_ - 1) + " threads (" + error.what() +
                               "): draw with fewer, torch.set_num_threads(" +
                               std::to_string(others.size() + 1) + ") or less.");
    } catch (...) {
      join();
      throw;
    }
    complete = true;
    join();
  }

  // About 25 us of spinning, then some hundreds of yields, then naps.
  static constexpr int64_t kSpins = 2000, kYields = 500, kNapNanoseconds = 50000;

  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  static int active_of(uint64_t state) { return static_cast<int>(static_cast<uint32_t>(state)); }

  const int size_;
  alignas(64) std::atomic<int> arrived_{0};
  // How often all have met, then in 32 bits how many threads are active.
  alignas(64) std::atomic<uint64_t> state_;
  int wanted_;
  std::atomic<bool> closed_{false};
  alignas(64) std::atomic<int> asleep_{0};
  std::atomic<uint32_t> calls_{0};  // how often sleepers were called
  // The next item of `share`; a barrier resets it.
  alignas(64) std::atomic<int64_t> next_{0};
};

}  // namespace vqvae2_fast::cpu::sampler
