// Where a position's time goes, if asked for: microseconds by stage and thread.
#pragma once

#include <chrono>

#include "../threads/team.h"

namespace vqvae2_fast::cpu::sampler {

// The stages of the pixel phase; each ends with a barrier. Their names are in kStageNames.
enum class Stage {
  kConvolutions,
  kStem,
  kFirst,
  kSecond,
  kWeights,
  kHeads,
  kOutFirst,
  kOutSecond,
  kMerge,
  kOutput,
  kHead,
  kDraw,
};
constexpr const char* kStageNames[] = {
    "convolutions",
    "stem",
    "attention first",
    "attention second",
    "query, key, value",
    "heads",
    "attention out 1",
    "attention out 2",
    "merge",
    "output layers",
    "head",
    "draw",
};
constexpr int kNumStages = sizeof(kStageNames) / sizeof(kStageNames[0]);

// One thread's clock of one call of pixel_phase.
class StageClock {
 public:
  // profile [positions, kNumStages, threads, 2]: working and waiting, added to; or null.
  StageClock(float* profile, int thread, int threads)
      : profile_(profile), thread_(thread), threads_(threads) {}

  void start(int64_t position) {
    if (!profile_) return;
    position_ = position;
    mark_ = Clock::now();
  }

  // The stage's work is done.
  void worked(Stage stage) { add(stage, 0); }
  // All threads have met.
  void met(Stage stage) { add(stage, 1); }

 private:
  using Clock = std::chrono::steady_clock;

  void add(Stage stage, int what) {
    if (!profile_) return;
    const Clock::time_point now = Clock::now();
    const int64_t at = (position_ * kNumStages + static_cast<int>(stage)) * threads_ + thread_;
    profile_[at * 2 + what] += std::chrono::duration<float, std::micro>(now - mark_).count();
    mark_ = now;
  }

  float* const profile_;
  const int thread_, threads_;
  int64_t position_ = 0;
  Clock::time_point mark_;
};

}  // namespace vqvae2_fast::cpu::sampler
