// Tests three things of teams. A team takes the threads of a pool, and begins with one if they do
// not all come. Threads can leave a team between two barriers and come back between two rows, as a
// draw's do (sampler.cpp), however they are delayed: every position's work is done once, by as many
// threads as take part. And threads that the system does not run leave, however short the rows are.
// Without torch; .ci/sanitizers builds and runs it.
#include "../cpu/threads/team.h"

#include <stdio.h>

#include <algorithm>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "../cpu/threads/pace.h"

namespace {

using vqvae2_fast::cpu::Team;

constexpr int kRows = 20, kPositions = 6;

// Work of one position: how many threads did it, and how many took part.
struct Done {
  std::atomic<int> shares{0};
  int active = 0;
};

void delay(std::mt19937& random) {
  for (unsigned n = random() % 3000; n > 0; --n) asm volatile("");
}

thread_local int in_the_pool = 0;

// One position in `steady` has fewer threads than the one before, on average.
bool run(int threads, unsigned seed, unsigned steady) {
  Team team(threads);
  std::vector<Done> done(kRows * kPositions);
  std::mt19937 sizes(seed);
  int row = 0;
  team.run([&](int thread) {
    std::mt19937 random(seed + 1 + thread);
    while (team.takes_part(thread)) {
      const int i = row;
      bool stays = true;
      for (int j = 0; j < kPositions && stays; ++j) {
        Done& own = done[i * kPositions + j];
        own.shares.fetch_add(1, std::memory_order_relaxed);
        delay(random);
        if (thread == 0) {
          own.active = team.active();
          if (sizes() % steady == 0) team.set_active(1 + static_cast<int>(sizes() % own.active));
        }
        team.barrier();
        stays = team.is_active(thread);
        if (stays) team.barrier();
      }
      // Later than thread 0, which may have closed the team meanwhile.
      if (thread != 0) Team::nap();
      if (!stays) continue;
      if (thread == 0) {
        row = i + 1;
        if (row == kRows) {
          team.close();
        } else if (team.all_asleep()) {
          team.set_active(team.active() +
                          static_cast<int>(sizes() % (threads - team.active() + 1)));
        }
      }
      team.barrier();
    }
  });
  for (const Done& own : done) {
    if (own.shares != own.active) {
      printf("FAILED: %d of %d active threads, %d threads, seed %u\n", own.shares.load(),
             own.active, threads, seed);
      return false;
    }
  }
  return row == kRows;
}

// Runs items on new threads, in turn if there are fewer of them than items.
void share(int threads, int64_t count, const std::function<void(int64_t, int64_t)>& part) {
  const int64_t each = (count + threads - 1) / threads;
  std::vector<std::thread> others;
  for (int64_t first = each; first < count; first += each) {
    others.emplace_back([&, first] { part(first, first + each < count ? first + each : count); });
  }
  part(0, each < count ? each : count);
  for (std::thread& other : others) other.join();
}

// How a team of three ran.
struct Ran {
  bool on_caller = false;  // thread 0
  std::atomic<int> active{0}, slept{0}, in_pool{0};
};

void run(Ran& ran) {
  const auto caller = std::this_thread::get_id();
  Team team(3);
  team.run([&](int thread) {
    ran.in_pool += in_the_pool;
    if (!team.is_active(thread)) {
      if (!team.takes_part(thread)) ++ran.slept;
      return;
    }
    ++ran.active;
    if (thread == 0) ran.on_caller = std::this_thread::get_id() == caller;
    team.barrier();
    if (thread == 0) team.close();
    team.barrier();
  });
}

// A team takes the threads of a pool of its size, and goes on without those that do not come.
bool pools() {
  struct Case {
    const char* name;
    int size, threads;  // what the pool says that it has, and what it has
    bool late;          // whether the last item waits for thread 0
    int active, in_pool;
  };
  const Case cases[] = {
      {"a pool that fits", 3, 3, false, 3, 3},
      {"a pool of another size", 4, 3, false, 3, 0},
      {"a pool with too few threads", 3, 2, false, 1, 3},
      {"a pool that runs items in turn", 3, 1, false, 1, 3},
      {"a pool whose last thread is busy", 3, 3, true, 1, 3},
  };
  vqvae2_fast::cpu::ThreadPool& pool = vqvae2_fast::cpu::thread_pool();
  bool good = true;
  for (const Case& c : cases) {
    // Those that come may need long on a busy machine.
    Team::longest_wait = std::chrono::seconds(c.late ? 0 : 60);
    pool.size = [&c] { return c.size; };
    pool.run_parts = [&c](int64_t count, const std::function<void(int64_t, int64_t)>& part) {
      std::atomic<bool> done{false};
      share(c.threads, count, [&](int64_t first, int64_t last) {
        while (c.late && last == count && !done) Team::nap();
        in_the_pool = 1;
        part(first, last);
        in_the_pool = 0;
        if (first == 0) done = true;
      });
    };
    pool.forget();
    Ran ran;
    run(ran);
    if (!ran.on_caller || ran.active != c.active || ran.slept != 3 - c.active ||
        ran.in_pool != c.in_pool) {
      printf("FAILED: %s: %d active, %d asleep, %d in the pool\n", c.name, ran.active.load(),
             ran.slept.load(), ran.in_pool.load());
      good = false;
    }
  }
  // That the others wait while thread 0 is in a callback is no failure, though a busy machine may
  // add one.
  pool.size = [] { return 3; };
  pool.run_parts = [](int64_t count, const std::function<void(int64_t, int64_t)>& part) {
    share(3, count, part);
  };
  Team::longest_wait = std::chrono::seconds(60);
  bool is_kept = false;
  for (int tries = 0; tries < 20 && !is_kept; ++tries) {
    pool.forget();
    Team team(3);
    team.run([&](int thread) {
      if (thread == 0) {
        team.aside([] {
          std::this_thread::sleep_for(std::chrono::milliseconds(200));
          return true;
        });
      }
      team.barrier();
    });
    is_kept = pool.is_usable();
  }
  if (!is_kept) {
    printf("FAILED: a callback counts as time without a processor\n");
    good = false;
  }
  // A pool that has failed is left alone for a while.
  pool.failed();
  Ran ran;
  run(ran);
  pool.forget();
  if (ran.active != 3 || ran.in_pool != 0 || !pool.is_usable()) {
    printf("FAILED: a pool that has failed: %d active, %d in the pool\n", ran.active.load(),
           ran.in_pool.load());
    good = false;
  }
  pool.run_parts = nullptr;
  return good;
}

// Rows that have too few steps for two marks (pace.cpp), with a thread that sleeps most of the
// time.
bool short_rows() {
  using vqvae2_fast::cpu::Pace;
  Team team(2);
  Pace pace(team);
  int rows = 0, fewest = team.size();
  team.run([&](int thread) {
    while (team.takes_part(thread)) {
      if (thread == 0) pace.start_row();
      bool stays = true;
      for (int step = 0; step < 2 && stays; ++step) {
        if (thread == 1) Team::nap();
        team.barrier();  // as after the convolutions
        pace.mark(thread);
        if (thread == 0) pace.choose();
        team.barrier();
        stays = team.is_active(thread);
        if (stays && thread == 0) pace.measure();
      }
      if (!stays) continue;
      team.barrier();
      if (thread == 0) {
        fewest = std::min(fewest, team.active());
        if (++rows < 200) {
          pace.end_row();
        } else {
          team.close();
        }
      }
      team.barrier();
    }
  });
  if (fewest > 1) printf("FAILED: a thread that sleeps was kept\n");
  return fewest == 1;
}

}  // namespace

int main() {
  if (!pools() || !short_rows()) return 1;
  for (const int threads : {1, 2, 5}) {
    for (unsigned seed = 0; seed < 4; ++seed) {
      if (!run(threads, seed, 4) || !run(threads, seed, 1000)) return 1;
    }
  }
  printf("team: every position's work was done once\n");
  return 0;
}
