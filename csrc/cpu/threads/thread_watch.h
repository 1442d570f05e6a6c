// How much of the time a thread runs.
#pragma once

#include <time.h>

#include <chrono>

namespace vqvae2_fast::cpu {

// Processor time of the calling thread. This takes 0.3 us.
inline std::chrono::nanoseconds processor_time() {
  timespec used;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &used);
  return std::chrono::seconds(used.tv_sec) + std::chrono::nanoseconds(used.tv_nsec);
}

class ThreadWatch {
 public:
  void start() { passed_ = -now(), run_ = -processor_time(); }
  void stop() { run_ += processor_time(), passed_ += now(); }
  std::chrono::nanoseconds passed() const { return passed_; }

  // Whether the thread did not run for a fifth of the time, and for long enough to be no chance,
  // beyond the time that it had a reason for.
  bool was_kept_waiting(std::chrono::nanoseconds reason) const {
    const auto waited = passed_ - run_ - reason;
    return waited > std::chrono::microseconds(500) && 5 * waited > passed_;
  }

  static std::chrono::nanoseconds now() {
    return std::chrono::steady_clock::now().time_since_epoch();
  }

 private:
  std::chrono::nanoseconds passed_{0}, run_{0};
};

}  // namespace vqvae2_fast::cpu
