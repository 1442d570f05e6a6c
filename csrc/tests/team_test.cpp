// Tests that threads can leave a team between two barriers and come back between two rows, as a
// draw's do (sampler.cpp), however they are delayed: every position's work is done once, by as many
// threads as take part. Without torch; .ci/sanitizers builds and runs it.
#include "../cpu/sampler/team.h"

#include <stdio.h>

#include <random>
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

}  // namespace

int main() {
  for (const int threads : {1, 2, 5}) {
    for (unsigned seed = 0; seed < 4; ++seed) {
      if (!run(threads, seed, 4) || !run(threads, seed, 1000)) return 1;
    }
  }
  printf("team: every position's work was done once\n");
  return 0;
}
