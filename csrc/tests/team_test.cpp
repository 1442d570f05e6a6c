// Tests two things of teams. A team takes the threads of a pool only if that runs all of them at
// once. And threads can leave a team between two barriers and come back between two rows, as a
// draw's do (sampler.cpp), however they are delayed: every position's work is done once, by as many
// threads as take part. Without torch; .ci/sanitizers builds and runs it.
#include "../cpu/sampler/team.h"

#include <stdio.h>

#include <functional>
#include <random>
#include <thread>
#include <vector>

namespace {

using vqvae2_fast::cpu::sampler::Team;

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

// A pool of threads, one for each item or one for several.
void share(int threads, int count, const std::function<void(int64_t, int64_t)>& part) {
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) {
    others.emplace_back(
        [&, thread] { part(count * thread / threads, count * (thread + 1) / threads); });
  }
  part(0, count / threads);
  for (std::thread& other : others) other.join();
}

// Whether a team of `size` meets, each thread once and thread 0 on the caller, and how many of the
// calls came from the pool.
bool meets(int size, int* from_pool) {
  const auto caller = std::this_thread::get_id();
  std::vector<int> calls(size);
  std::atomic<int> in_pool{0};
  bool caller_is_first = false;
  Team team(size);
  team.run([&](int thread) {
    ++calls[thread];
    in_pool += in_the_pool;
    if (thread == 0) caller_is_first = std::this_thread::get_id() == caller;
    team.barrier();
  });
  *from_pool = in_pool;
  return caller_is_first && calls == std::vector<int>(size, 1);
}

// A team takes the threads of a pool that runs all of them at once, and no others.
bool pools() {
  constexpr int kSize = 3;
  vqvae2_fast::cpu::ThreadPool& pool = vqvae2_fast::cpu::thread_pool();
  // Each case: the pool's size, the threads it really has, whether the last one comes when the
  // others have gone, and how many calls come from it.
  struct Case {
    const char* name;
    int size, threads;
    bool late;
    int from_pool;
  };
  const Case cases[] = {
      {"a pool that fits", kSize, kSize, false, kSize},
      {"a pool of another size", kSize + 1, kSize, false, 0},
      {"a pool with too few threads", kSize, kSize - 1, false, 0},
      {"a pool that runs items in turn", kSize, 1, false, 0},
      {"a pool whose threads are busy", kSize, kSize, true, 0},
  };
  bool good = true;
  for (const Case& c : cases) {
    pool.size = [&c] { return c.size; };
    pool.run_parts = [&c](int64_t count, const std::function<void(int64_t, int64_t)>& part) {
      std::atomic<int64_t> gone{0};
      share(c.threads, static_cast<int>(count), [&](int64_t first, int64_t last) {
        while (c.late && last == count && gone < count - 1) Team::nap();
        in_the_pool = 1;
        part(first, last);
        in_the_pool = 0;
        gone += last - first;
      });
    };
    int from_pool = 0;
    if (!meets(kSize, &from_pool) || from_pool != c.from_pool) {
      printf("FAILED: %s: %d calls from the pool\n", c.name, from_pool);
      good = false;
    }
  }
  pool = {};
  return good;
}

}  // namespace

int main() {
  if (!pools()) return 1;
  for (const int threads : {1, 2, 5}) {
    for (unsigned seed = 0; seed < 4; ++seed) {
      if (!run(threads, seed, 4) || !run(threads, seed, 1000)) return 1;
    }
  }
  printf("team: every position's work was done once\n");
  return 0;
}
