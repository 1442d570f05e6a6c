// What the pixel phase of the port's top map costs if nothing is computed: two threads read the
// bytes that the sampler has to read, in its order.
//
//     g++ -O3 -std=c++20 -mavx2 -pthread benchmarks/sampler_floor.cpp -o floor && ./floor
//
// The first line is what the read loop of `sampler.py` has: the weights of a position, again and
// again. Each further line adds what a draw cannot leave out: the keys and values of the positions
// before, the weights of the row phase, which empty the caches before every row, and the barriers
// between the stages of a position.
#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

namespace {

constexpr int kRows = 32, kColumns = 32, kThreads = 2, kRounds = 3, kStages = 33;
// Floats of the port's top prior, float32: the taps above; what each position reads, and what every
// second one does; keys and values of the whole map.
constexpr int64_t kAbove = 39'321'600, kEach = 7'230'000, kSecond = 3'145'728, kCache = 1'048'576;
constexpr int64_t kAhead = 2048, kHugePage = 2 << 20;

// In huge pages, as the packed weights are.
float* floats(int64_t count) {
  const int64_t bytes = count * static_cast<int64_t>(sizeof(float));
  void* const memory =
      mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  auto* const begin = reinterpret_cast<float*>(
      (reinterpret_cast<uintptr_t>(memory) + kHugePage - 1) / kHugePage * kHugePage);
  madvise(begin, bytes, MADV_HUGEPAGE);
  memset(begin, 0, bytes);
  return begin;
}

class Barrier {
 public:
  void wait() {
    const int phase = phase_.load();
    if (count_.fetch_add(1) == kThreads - 1) {
      count_ = 0;
      phase_ = phase + 1;
    } else {
      while (phase_.load() == phase) _mm_pause();
    }
  }

 private:
  std::atomic<int> count_{0}, phase_{0};
};

// HINT as of _mm_prefetch: the taps at -2 are kept out of the caches, as the sampler does on AMD.
template <int HINT>
float sum(const float* memory, int64_t count) {
  __m256 sums[8] = {};
  for (int64_t i = 0; i + 64 <= count; i += 64) {
    for (int line = 0; line < 64; line += 16) {
      _mm_prefetch(reinterpret_cast<const char*>(memory + i + line + kAhead),
                   static_cast<_mm_hint>(HINT));
    }
    for (int v = 0; v < 8; ++v) sums[v] += _mm256_loadu_ps(memory + i + 8 * v);
  }
  for (int v = 1; v < 8; ++v) sums[0] += sums[v];
  return sums[0][0];
}

struct Memory {
  float *above = floats(kAbove), *each = floats(kEach), *second = floats(kSecond),
        *cache = floats(kCache);
};

// Microseconds per position of each row.
std::vector<double> measured(const Memory& memory, bool cache, bool above, int stages) {
  Barrier barrier;
  std::vector<double> found;
  std::atomic<float> total{0};
  const auto draw = [&](int thread) {
    const auto share = [&](int64_t count) { return count / kThreads; };
    for (int row = 0; row < kRows; ++row) {
      float read = 0;
      if (above) read += sum<_MM_HINT_T0>(memory.above + thread * share(kAbove), share(kAbove));
      barrier.wait();
      const auto start = std::chrono::steady_clock::now();
      for (int column = 0; column < kColumns; ++column) {
        if (column % 2 == 0) {
          read += sum<_MM_HINT_NTA>(memory.second + thread * share(kSecond), share(kSecond));
        }
        const int64_t seen = kCache * (row * kColumns + column) / (kRows * kColumns);
        for (int stage = 0; stage < stages; ++stage) {
          const int64_t part = share(kEach) / stages, keys = share(seen) / stages;
          read += sum<_MM_HINT_T0>(memory.each + thread * share(kEach) + stage * part, part);
          if (cache) {
            read += sum<_MM_HINT_T0>(memory.cache + thread * share(kCache) + stage * keys, keys);
          }
          barrier.wait();
        }
      }
      const std::chrono::duration<double, std::micro> taken =
          std::chrono::steady_clock::now() - start;
      if (thread == 0) found.push_back(taken.count() / kColumns);
      total = total + read;
    }
  };
  for (int round = 0; round < kRounds; ++round) {
    std::thread other(draw, 1);
    draw(0);
    other.join();
  }
  if (total != 0) std::printf("the memory was not zero\n");  // so that the sums are needed
  std::sort(found.begin(), found.end());
  return found;
}

void print(const char* what, const std::vector<double>& times) {
  double mean = 0;
  for (const double time : times) mean += time / static_cast<double>(times.size());
  std::printf("%-52s median %4.0f, mean %4.0f us a position\n", what, times[times.size() / 2],
              mean);
}

}  // namespace

int main() {
  const Memory memory;
  print("the weights of a position", measured(memory, false, false, 1));
  print("and keys and values", measured(memory, true, false, 1));
  print("and the weights of the row phase before each row", measured(memory, true, true, 1));
  print("and a barrier after each of 33 stages", measured(memory, true, true, kStages));
}
