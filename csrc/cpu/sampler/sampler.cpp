#include "sampler.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <vector>

#include "../kernels.h"
#include "condition.h"

namespace vqvae2_fast::cpu::sampler {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Weights that the last-level cache holds may be read by each thread.
constexpr int64_t kCachedWeights = int64_t{16} << 20;
// Larger ones come from memory, whose bandwidth the threads share. From this many samples per
// thread of the draw on, the products of a group cost more than the reading.
constexpr int64_t kSamplesPerThread = 8;
// With two groups per thread, all threads finish at about the same time. Groups of fewer samples
// than this would make each sample's products slower.
constexpr int64_t kGroupsPerThread = 2, kGroupSamples = 8;

// How many groups of samples are drawn side by side; 1 if all threads share each position.
int64_t num_groups(const Plan& plan, const Request& request) {
  const int64_t threads = request.threads;
  const bool cached = plan.weight_bytes() <= kCachedWeights;
  const int64_t least = cached ? 1 : kSamplesPerThread * threads;
  // A profile is one of stages that all threads share.
  if (threads == 1 || request.profile || request.batch < least * threads) return 1;
  const int64_t wanted = request.batch / std::max(least, kGroupSamples);
  return std::clamp(wanted, threads, kGroupsPerThread * threads);
}

// Samples [begin, end) of a request.
Request part_of(const Plan& plan, Request request, Range samples) {
  const int64_t b = samples.begin, positions = b * plan.height * plan.width;
  request.batch = samples.size();
  request.first_sample += b;
  for (size_t m = 0; m < request.maps.size(); ++m) {
    request.maps[m] += b * plan.condition.maps[m].height * plan.condition.maps[m].width;
  }
  request.codes += positions;
  if (request.labels) request.labels += b;
  if (request.known) request.known += positions;
  if (request.noise) request.noise += positions * plan.num_embeddings;
  if (request.rows) request.rows += 2 * b;
  if (request.log_prob) request.log_prob += positions;
  if (request.logits) request.logits += positions * plan.num_embeddings;
  if (request.intervals) request.intervals += positions;
  if (request.decoders) request.decoders += b;
  return request;
}

using AfterRow = std::function<bool(int64_t)>;

// Draws until row i is complete. False if the thread has left the team before. Adds to the seconds
// of `timing`, if there is one.
bool draw_row(State& state, int thread, int64_t i, Timing* timing) {
  const Schedule& schedule = state.schedule;
  for (int64_t time = schedule.begin(i); time < schedule.end(i);) {
    const auto start = Clock::now();
    const int64_t begin = schedule.segment_begin(time);
    if (time == begin) row_phase(state, begin);
    const auto pixels_start = Clock::now();
    const Range times = {time, std::min(begin + schedule.segment, schedule.end(i))};
    if (!pixel_phase(state, thread, times)) return false;
    if (timing) {
      timing->rows += std::chrono::duration<double>(pixels_start - start).count();
      timing->pixels += seconds_since(pixels_start);
    }
    time = times.end;
  }
  return true;
}

// All threads draw each position together.
Timing draw_together(const Plan& plan, const Request& request, const AfterRow& after_row) {
  Timing timing;
  Team team(request.threads);
  State state(plan, request, kernels(), team);
  auto scratch = std::make_unique<const ConditionScratch>(plan, request.batch);
  int64_t row = 0;
  team.run([&](int thread) {
    const auto start = Clock::now();
    if (team.is_active(thread)) {
      compute_features(state, *scratch);
      team.barrier();
    }
    if (thread == 0) {
      scratch.reset();
      timing.condition = seconds_since(start);
    }
    while (team.takes_part(thread)) {
      const int64_t i = row;
      if (thread == 0) state.pace.start_row();
      if (!draw_row(state, thread, i, thread == 0 ? &timing : nullptr)) continue;
      if (thread == 0) {
        row = i + 1;
        if (team.aside([&] { return after_row(row); }) && row < plan.height) {
          state.pace.end_row();
        } else {
          team.close();
        }
      }
      team.barrier();
    }
  });
  timing.steps = state.steps;
  timing.clamped = state.clamped;
  timing.too_large = state.too_large;
  return timing;
}

// Some of the samples, of which one thread at a time draws a row.
struct Group {
  Group(const Plan& plan, const Request& whole, Range samples)
      : request(part_of(plan, whole, samples)),
        state(plan, request, kernels(), team),
        scratch(std::make_unique<ConditionScratch>(plan, request.batch)) {}

  const Request request;
  Team team{1};
  State state;
  std::unique_ptr<const ConditionScratch> scratch;  // until the first row
  int64_t rows = 0;                                 // drawn
  bool taken = false;
};

// Each thread draws a row of a group, then one of another. No thread waits for another, so that
// they lose little where the machine is busy and they do not all run at once.
class SideBySide {
 public:
  SideBySide(const Plan& plan, const Request& request, int64_t count, const AfterRow& after_row)
      : plan_(plan), after_row_(after_row), outer_(request.threads) {
    for (const Range& samples : split_evenly(request.batch, static_cast<int>(count))) {
      groups_.push_back(std::make_unique<Group>(plan, request, samples));
    }
  }

  Timing draw() {
    outer_.run([&](int thread) {
      while (Group* group = take()) {
        draw_next_row(*group, thread == 0);
        if (thread == 0) report();
      }
      while (thread == 0 && !stopped_ && reported_ < plan_.height) {
        Team::nap();
        report();
      }
    });
    for (const auto& group : groups_) {
      timing_.steps = std::max(timing_.steps, group->state.steps);
      timing_.clamped += group->state.clamped;
      timing_.too_large |= group->state.too_large;
    }
    return timing_;
  }

 private:
  // The group that has fewest rows, of those that no thread draws; null if there is none. Then the
  // other threads draw all that are left.
  Group* take() {
    const std::lock_guard<std::mutex> lock(mutex_);
    Group* found = nullptr;
    for (const auto& group : groups_) {
      if (group->taken || group->rows == plan_.height) continue;
      if (!found || group->rows < found->rows) found = group.get();
    }
    if (stopped_ || !found) return nullptr;
    found->taken = true;
    return found;
  }

  void draw_next_row(Group& group, bool timed) {
    const auto start = Clock::now();
    if (group.rows == 0) {
      compute_features(group.state, *group.scratch);
      group.scratch.reset();
    }
    if (timed) timing_.condition += seconds_since(start);
    draw_row(group.state, 0, group.rows, timed ? &timing_ : nullptr);
    const std::lock_guard<std::mutex> lock(mutex_);
    ++group.rows;
    group.taken = false;
  }

  // Tells the caller, in its thread, of the rows that all groups have drawn.
  void report() {
    int64_t rows = plan_.height;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (const auto& group : groups_) rows = std::min(rows, group->rows);
    }
    while (reported_ < rows && !stopped_) {
      if (!outer_.aside([&] { return after_row_(++reported_); })) stopped_ = true;
    }
  }

  const Plan& plan_;
  const AfterRow& after_row_;
  Team outer_;
  std::vector<std::unique_ptr<Group>> groups_;
  std::mutex mutex_;  // of the groups' rows and taken
  std::atomic<bool> stopped_{false};
  int64_t reported_ = 0;
  Timing timing_;
};

}  // namespace

Timing draw_map(const Plan& plan, const Request& request, const AfterRow& after_row) {
  if (request.columns > 1) {
    std::copy_n(request.known, request.batch * plan.height * plan.width, request.codes);
  }
  const int64_t groups = num_groups(plan, request);
  if (groups == 1) return draw_together(plan, request, after_row);
  return SideBySide(plan, request, groups, after_row).draw();
}

int64_t cache_bytes(const Plan& plan, int64_t batch, bool guided) {
  Request request;
  request.batch = batch;
  request.guided = guided;
  Team team(1);
  const State state(plan, request, kernels(), team);
  int64_t size = 0;
  for (const Buffer* buffer : {&state.ring1.memory, &state.ring2.memory, &state.out1, &state.out2,
                               &state.features, &state.of_condition, &state.keys, &state.values}) {
    size += buffer->size();
  }
  return size * static_cast<int64_t>(sizeof(float));
}

}  // namespace vqvae2_fast::cpu::sampler
