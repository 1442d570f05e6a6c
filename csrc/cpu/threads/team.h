// Threads that run one function in parallel and meet at barriers, for the duration of one draw.
// They are those of the process's pool if it has as many and has run them lately, else new ones.
//
// A position of the map has about thirty points where all threads must meet, a few microseconds
// apart, so they spin there. A thread that waits for long yields, then sleeps, so as not to slow
// down a crowded machine further. Of the threads 0..size-1 the first `active` take part; the others
// sleep, so that a draw can use fewer where the system does not run them all (pace.h).
#pragma once

#include <sched.h>
#include <stdint.h>
#include <time.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

#include "../float_mode.h"
#include "thread_pool.h"
#include "thread_watch.h"

namespace vqvae2_fast::cpu {

struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};

class Team {
 public:
  // How long the pool's threads may take to come: one that sleeps needs about 50 us. A test waits
  // longer.
  static inline std::chrono::microseconds longest_wait{500};

  explicit Team(int size) : size_(size), state_(static_cast<uint32_t>(size)), wanted_(size) {}
  int size() const { return size_; }
  int active() const { return active_of(state_.load(std::memory_order_acquire)); }
  // After the barrier of `set_active`: whether the thread still takes part. A thread that has left
  // may call this even after `close`, so `closed_` is read after `active()`. A thread that stays
  // must not call it again at the end of a row: thread 0 may have closed the team by then.
  bool is_active(int thread) const { return thread < active() && !closed_; }

  // Before the function is called: how many take part at first.
  void start_with(int count) {
    wanted_ = count;
    state_.store(static_cast<uint32_t>(count), std::memory_order_relaxed);
  }
  // Thread 0: calls function(), for which the others may wait without anybody lacking a processor.
  template <typename Function>
  auto aside(const Function& function) {
    const auto start = ThreadWatch::now();
    const auto result = function();
    aside_ += ThreadWatch::now() - start;
    return result;
  }
  // How long such functions have taken in all.
  std::chrono::nanoseconds time_aside() const { return aside_; }
  // Whether the pool's threads did not come in time, so that thread 0 began alone.
  bool came_late() const { return came_late_; }
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

  // Calls function(thread) for 0..size-1, with thread 0 on the calling thread and the others at the
  // same time if possible. If they do not come at once, thread 0 is the only active one at first;
  // a function that does not ask `is_active` may then be called late, or in turn.
  // The function must not throw. Throws std::runtime_error if the system does not start all
  // threads; the function has not been called then.
  template <typename Function>
  void run(const Function& function) {
    ThreadPool& pool = thread_pool();
    // Where not all are to be active, the last draw found that the system does not run them.
    if (size_ > 1 && active() == size_ && pool.is_usable() && pool.size() == size_) {
      run_in_pool(pool, function);
    } else {
      run_on_new_threads(function);
    }
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
  // Values of `present` once the pool's threads have not come in time: first thread 0 says that it
  // is the only active one.
  static constexpr int kLate = -1, kAlone = -2;

  template <typename Function>
  void run_in_pool(ThreadPool& pool, const Function& function) {
    make_sure_of_room();
    std::atomic<int> present{0};
    std::vector<ThreadWatch> watches(size_);
    pool.run_parts(size_, [&](int64_t first, int64_t last) {
      // In another parallel region, for example, one thread gets them all.
      const bool in_turn = last - first > 1;
      for (int64_t thread = first; thread < last; ++thread) {
        if (thread == 0) {
          wait_for_others(present, in_turn);
        } else {
          come(present);
        }
        watches[thread].start();
        function(static_cast<int>(thread));
        watches[thread].stop();
      }
    });
    const auto waited = [&](const ThreadWatch& watch) { return watch.was_kept_waiting(aside_); };
    if (came_late_ || std::any_of(watches.begin(), watches.end(), waited)) {
      pool.failed();
    } else if (watches[0].passed() > std::chrono::milliseconds(1)) {
      pool.worked();
    }
  }

  // Thread 0 of the pool: until the others have come.
  void wait_for_others(std::atomic<int>& present, bool in_turn) {
    const auto end = std::chrono::steady_clock::now() + longest_wait;
    int seen = present.fetch_add(1) + 1;
    while (seen != size_) {
      const bool late = in_turn || std::chrono::steady_clock::now() > end;
      if (late && present.compare_exchange_strong(seen, kLate)) {
        came_late_ = !in_turn;
        start_with(1);
        present = kAlone;
        return;
      }
      pause();
      seen = present;
    }
  }

  // The other threads of the pool: until all have come, or thread 0 is alone.
  void come(std::atomic<int>& present) const {
    int seen = present;
    while (seen >= 0 && !present.compare_exchange_weak(seen, seen + 1)) {
    }
    for (int64_t tries = 0; (seen = present) != size_ && seen != kAlone; ++tries) {
      if (tries < kSpins) {
        pause();
      } else {
        sched_yield();
      }
    }
  }

  // GNU OpenMP ends the process if the system does not start a thread, so new ones are tried first.
  void make_sure_of_room() const {
    // The size of the calling thread's last team. OpenMP ends the threads that a smaller one does
    // not need. What PyTorch's operators start or end in between is not known here.
    static thread_local int last = 1;
    if (size_ > last) Team(size_).run_on_new_threads([](int) {});
    last = size_;
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
  bool came_late_ = false;
  std::chrono::nanoseconds aside_{0};
  std::atomic<bool> closed_{false};
  alignas(64) std::atomic<int> asleep_{0};
  std::atomic<uint32_t> calls_{0};  // how often sleepers were called
  // The next item of `share`; a barrier resets it.
  alignas(64) std::atomic<int64_t> next_{0};
};

}  // namespace vqvae2_fast::cpu
