#include "pace.h"

#include <algorithm>
#include <mutex>

#include "thread_watch.h"

namespace vqvae2_fast::cpu {
namespace {

// Seconds between marks, which cost 0.3 us each; until a decision; and before more are tried.
constexpr double kBetweenMarks = 1e-3, kDecision = 1e-2, kFirstPause = 0.01, kLongestPause = 3.2;
// The part of a processor that each thread has to get. Waits for each other count as work.
constexpr double kEnough = 0.8;
// Twice what a thread that sleeps needs to come back.
constexpr std::chrono::microseconds kLongAside{100};

// What the last draw that ended with fewer threads than it had found out.
struct Learnt {
  int threads = 0, wanted = 0;
  std::chrono::steady_clock::time_point retry;
  double pause = kFirstPause;
};
std::mutex learnt_lock;
Learnt learnt;

double seconds(std::chrono::nanoseconds time) {
  return std::chrono::duration<double>(time).count();
}

}  // namespace

void forget_pace() {
  const std::lock_guard<std::mutex> lock(learnt_lock);
  learnt = {};
}

Pace::Pace(Team& team)
    : team_(team), used_(team.size()), pause_(kFirstPause), wanted_(team.size()) {
  if (team.size() == 1) return;
  const std::lock_guard<std::mutex> lock(learnt_lock);
  if (learnt.threads != team.size()) return;
  pause_ = learnt.pause;
  retry_ = learnt.retry;
  if (Clock::now() >= retry_) return;
  wanted_ = learnt.wanted;
  team.start_with(wanted_);
}

Pace::~Pace() {
  if (team_.size() == 1) return;
  const std::lock_guard<std::mutex> lock(learnt_lock);
  learnt = {};
  if (wanted_ < team_.size()) learnt = {team_.size(), wanted_, retry_, pause_};
}

void Pace::start_row() {
  if (team_.active() < wanted_) {  // not all have come
    if (team_.came_late()) lower(team_.active(), Clock::now());
    wanted_ = team_.active();
    has_base_ = false;
  }
  marks_ = wanted_ > 1;
  // A row may be too short for two marks, so the last mark of the row before still counts, unless
  // thread 0 was aside for long: the others slept then.
  if (team_.time_aside() - aside_ > kLongAside) has_base_ = false;
  aside_ = team_.time_aside();
}

void Pace::mark(int thread) {
  if (marks_) used_[thread].seconds = seconds(processor_time());
}

void Pace::measure() {
  const int active = team_.active();
  if (active == 1) return;
  const Clock::time_point now = Clock::now();
  const double passed = seconds(now - last_);
  if (marks_) {
    double sum = 0;
    for (int thread = 0; thread < active; ++thread) sum += used_[thread].seconds;
    if (has_base_) {
      given_ += sum - before_;
      passed_ += passed;
    }
    before_ = sum;
    last_ = now;
    has_base_ = true;
  }
  marks_ = !marks_ && passed >= kBetweenMarks;
  if (passed_ < kDecision) return;
  const double share = given_ / passed_;
  given_ = passed_ = 0;
  if (share >= kEnough * active) {
    if (active == team_.size()) pause_ = kFirstPause;
    return;
  }
  // Sizes are the whole team and its halves, for which the work has been split.
  int threads = wanted_;
  while (threads > 1 && kEnough * threads > share) threads /= 2;
  lower(threads, now);
  has_base_ = false;
  marks_ = marks_ && wanted_ > 1;
}

void Pace::lower(int threads, Clock::time_point now) {
  wanted_ = threads;
  retry_ = now + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(pause_));
  pause_ = std::min(2 * pause_, kLongestPause);
}

void Pace::end_row() {
  if (wanted_ < team_.size() && Clock::now() >= retry_ && team_.all_asleep()) {
    int larger = team_.size();
    while (larger / 2 > wanted_) larger /= 2;
    wanted_ = larger;
    has_base_ = false;
  }
  team_.set_active(wanted_);
}

}  // namespace vqvae2_fast::cpu
