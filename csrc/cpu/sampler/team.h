// Threads that run one function in parallel and meet at barriers, for the duration of one draw.
//
// A position of the map has about thirty points where all threads must meet, a few microseconds
// apart, so they spin there. A thread that waits for long yields, then sleeps, so as not to slow
// down a crowded machine further.
#pragma once

#include <sched.h>
#include <stdint.h>
#include <time.h>

#include <atomic>
#include <mutex>
#include <stdexcept>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace vqvae2_fast::cpu::sampler {

struct Range {
  int64_t begin = 0, end = 0;
  int64_t size() const { return end - begin; }
};

class Team {
 public:
  explicit Team(int size) : size_(size) {}
  int size() const { return size_; }

  // Calls function(thread) for 0..size-1 in parallel, with thread 0 on the calling thread. The
  // function must not throw. Throws std::runtime_error if the system does not start all threads;
  // the function has not been called then.
  template <typename Function>
  void run(const Function& function) {
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
    }
    complete = true;
    join();
  }

  // Every thread calls this inside `run`: what was written before it is seen by all afterwards.
  void barrier() {
    if (size_ == 1) {
      next_.store(0, std::memory_order_relaxed);
      return;
    }
    const uint32_t generation = generation_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      next_.store(0, std::memory_order_relaxed);
      generation_.store(generation + 1, std::memory_order_release);
      return;
    }
    for (int64_t tries = 0; generation_.load(std::memory_order_acquire) == generation; ++tries) {
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

  // Every thread calls this inside `run`: each of item(0..count-1) goes to whichever thread is
  // free. Ends with a barrier.
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
  // About 25 us of spinning, then some hundreds of yields, then naps.
  static constexpr int64_t kSpins = 2000, kYields = 500, kNapNanoseconds = 50000;

  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  const int size_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
  // The next item of `share`; a barrier resets it.
  alignas(64) std::atomic<int64_t> next_{0};
};

}  // namespace vqvae2_fast::cpu::sampler
