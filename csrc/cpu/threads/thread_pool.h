// Threads that the process has anyway. A team (team.h) takes them before it starts its own,
// because OpenMP's threads spin for some milliseconds after their last work, on the cores that new
// threads would need. Beside other processes new ones are better: those that spin use up their
// share of the cores, and then wait when there is work.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>

#include "run_parts.h"

namespace vqvae2_fast::cpu {

class ThreadPool {
 public:
  std::function<int()> size;  // how many threads the calling one may use, itself included
  // The first part runs on the calling thread, and each in the mode of DefaultFloats.
  RunParts run_parts;

  bool is_usable() const { return run_parts && Clock::now().time_since_epoch() >= retry_.load(); }

  // The threads have not run when they should: they are left alone for a while, twice as long each
  // time, up to 3.2 s. The limits were not tuned.
  void failed() {
    const Clock::duration pause = pause_;
    retry_ = Clock::now().time_since_epoch() + pause;
    pause_ = std::min<Clock::duration>(2 * pause, std::chrono::milliseconds(3200));
  }
  void worked() { pause_ = std::max<Clock::duration>(pause_.load() / 2, kFirstPause); }
  // For tests.
  void forget() { retry_ = Clock::duration(0), pause_ = kFirstPause; }

 private:
  using Clock = std::chrono::steady_clock;
  static constexpr Clock::duration kFirstPause = std::chrono::milliseconds(50);

  // Any thread may read and write these; that one overwrites another's does no harm.
  std::atomic<Clock::duration> retry_{Clock::duration(0)}, pause_{kFirstPause};
};

// Empty until a binding fills it, before any other thread calls into the library.
inline ThreadPool& thread_pool() {
  static ThreadPool pool;
  return pool;
}

}  // namespace vqvae2_fast::cpu
