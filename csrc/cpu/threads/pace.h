// How many of a draw's threads take part, by the processor time that the system gives them.
//
// Where threads meet every few microseconds, all are as slow as the one that waits for a processor:
// beside other work, or with a quota below their number, two can take forty times as long as one.
// So their processor time is compared with the time that passed, and those that the system does not
// run go to sleep. After a while, longer after each failure, twice as many are tried again. A draw
// begins with as many as the last one of this process had. Codes do not depend on any of this.
#pragma once

#include <stdint.h>

#include <chrono>
#include <vector>

#include "team.h"

namespace vqvae2_fast::cpu {

// For tests: the next draw begins with all of its threads.
void forget_pace();

class Pace {
 public:
  explicit Pace(Team& team);
  ~Pace();

  // Thread 0 before the steps that complete a row.
  void start_row();
  // Every active thread at each position, before a barrier; thread 0 at the same barrier before and
  // after.
  void mark(int thread);
  void choose() { team_.set_active(wanted_); }
  void measure();
  // Thread 0 after them, before a barrier.
  void end_row();

 private:
  using Clock = std::chrono::steady_clock;

  struct alignas(64) Used {
    double seconds = 0;
  };

  // Uses at most so many threads until a pause has passed.
  void lower(int threads, Clock::time_point now);

  Team& team_;
  std::vector<Used> used_;  // [threads], processor time so far
  bool marks_ = false;      // whether the next position is marked
  bool has_base_ = false;   // whether there is a mark to compare with
  double before_ = 0;       // processor time of all at the last mark
  std::chrono::nanoseconds aside_{0};
  double given_ = 0, passed_ = 0;  // processor time and time of the marks since the last decision
  Clock::time_point last_, retry_;
  double pause_;
  int wanted_;
};

}  // namespace vqvae2_fast::cpu
