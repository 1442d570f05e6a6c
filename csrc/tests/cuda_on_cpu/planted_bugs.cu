// Tests that the harness catches what it should. `planted_bugs NAME` runs correct kernels with the
// one mistake of that name planted; `none` plants none. It exits with 0 if every result is right,
// with 3 if one is wrong, with 4 on a launch error, and otherwise as the harness or a sanitizer
// ends it. `planted_bugs --list` prints the names; planted_bugs.txt says what has to catch each.
#include <stdio.h>

#include "device_array.h"
#include "planted_block_kernels.cuh"
#include "planted_bugs.h"
#include "planted_clusters.h"
#include "planted_grid_kernels.cuh"
#if defined(CUDA_ON_CPU)
#include "planted_misuse.cuh"
#endif

namespace {

using namespace cuda_test;
using namespace planted;

constexpr int kWrongResult = 3, kLaunchError = 4;

// The bits of an integer in bfloat16, which is exact below 128.
uint16_t bf16_of_integer(int value) {
  const float number = static_cast<float>(value);
  uint32_t bits;
  memcpy(&bits, &number, sizeof(bits));
  return static_cast<uint16_t>(bits >> 16);
}

int finish(const char* error, bool right) {
  if (error != nullptr) {
    printf("launch error: %s\n", error);
    return kLaunchError;
  }
  if (!right) printf("wrong result\n");
  return right ? 0 : kWrongResult;
}

int run_block_kernel(Bug bug) {
  constexpr int kSize = kBlocks * kThreads;
  std::vector<float> x(kSize), expected(kSize);
  for (int i = 0; i < kSize; ++i) x[i] = static_cast<float>(i * 29 % 31);
  for (int block = 0; block < kBlocks; ++block) {
    std::vector<float> value(kThreads), next(kThreads);
    const float* row = &x[block * kThreads];
    for (int t = 0; t < kThreads; ++t)
      value[t] = row[kThreads - 1 - t] + row[kThreads - 1 - (t ^ 1)];
    for (int round = 0; round < kRounds; ++round) {
      for (int t = 0; t < kThreads; ++t) {
        next[t] = value[t] + value[(t + 1) % kThreads] + static_cast<float>(round);
      }
      value.swap(next);
    }
    for (int t = 0; t < kThreads; ++t) next[t] = value[t ^ 1];
    for (int t = 0; t < kThreads; ++t) {
      expected[block * kThreads + t] = next[t] + next[t < 32 ? 32 : 0];
    }
  }
  DeviceArray<float> in(x);
  auto out = zeros<float>(kSize);
  auto histogram = zeros<int>(kBins);
  LaunchShape shape;
  shape.grid = dim3(kBlocks);
  shape.block = dim3(kThreads);
  shape.shared_bytes = (bug == Bug::kTooMuchShared ? 60000 : kThreads) * sizeof(float);
  const char* error =
      launch("block_kernel", block_kernel, shape, in.data(), out.data(), histogram.data(), bug);
  const int counted = kSize / kBins;
  return finish(error,
                out.values() == expected && histogram.values() == std::vector<int>(kBins, counted));
}

int run_matrix_kernel(Bug bug) {
  std::vector<uint16_t> a(16 * 16), b(8 * 16);
  std::vector<float> expected(16 * 8);
  for (int i = 0; i < 16 * 16; ++i) a[i] = bf16_of_integer(i * 37 % 11);
  for (int i = 0; i < 8 * 16; ++i) b[i] = bf16_of_integer(i * 53 % 13);
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      int sum = 0;
      for (int k = 0; k < 16; ++k) {
        sum += (row * 16 + k) * 37 % 11 * ((column * 16 + k) * 53 % 13);
      }
      expected[row * 8 + column] = static_cast<float>(sum);
    }
  }
  DeviceArray<uint16_t> left(a), right(b);
  auto out = zeros<float>(16 * 8);
  LaunchShape shape;
  shape.block = dim3(32);
  const char* error =
      launch("matrix_kernel", matrix_kernel, shape, left.data(), right.data(), out.data(), bug);
  return finish(error, out.values() == expected);
}

#if defined(CUDA_ON_CPU)
int run_misuse(Bug bug) {
  auto out = zeros<int>(kMisuseThreads);
  LaunchShape shape;
  shape.block = dim3(bug == Bug::kStackOverflow ? 2 : kMisuseThreads);
  const char* error = nullptr;
  if (bug == Bug::kStackOverflow) {
    error = launch("stack_kernel", stack_kernel, shape, out.data());
  } else if (bug == Bug::kSharedOverLimit || bug == Bug::kSharedNotResident) {
    // 30 KiB in addition to the kernel's own 24: more than a block has without opting in. Or 4 KiB:
    // counting only dynamic memory, 21 blocks would fit a multiprocessor, but only 7 do.
    shape.shared_bytes = (bug == Bug::kSharedOverLimit ? 30 : 4) << 10;
    shape.cooperative = bug == Bug::kSharedNotResident;
    if (shape.cooperative) {
      shape.grid = dim3(co_resident_blocks(static_shared_kernel, kMisuseThreads, 4 << 10));
    }
    error = launch("static_shared_kernel", static_shared_kernel, shape, out.data());
  } else {
    error = launch("misuse_kernel", misuse_kernel, shape, out.data(), bug);
  }
  return finish(error, true);
}
#endif

int run_grid_kernel(Bug bug) {
  const int blocks = bug == Bug::kTooManyBlocks ? 100000 : kBlocks;
  const size_t size = static_cast<size_t>(blocks) * kThreads;
  auto values = zeros<float>(2 * size), totals = zeros<float>(size), out = zeros<float>(size);
  auto full = zeros<uint32_t>(blocks), read = zeros<uint32_t>(blocks);
  auto sum = zeros<float>(1);
  auto counter = zeros<uint32_t>(1);
  const Mailboxes mail = {values.data(), full.data(), read.data()};
  LaunchShape shape;
  shape.grid = dim3(blocks);
  shape.block = dim3(kThreads);
  shape.cooperative = bug != Bug::kOrdinaryLaunch;
  const char* error = launch("grid_kernel", grid_kernel, shape, mail, totals.data(), out.data(),
                             sum.data(), counter.data(), bug);
  if (error != nullptr) return finish(error, false);

  std::vector<float> value(size), next(size), expected(size);
  for (size_t i = 0; i < size; ++i) value[i] = static_cast<float>(i);
  for (int step = 0; step < kSteps; ++step) {
    for (int block = 0; block < kBlocks; ++block) {
      const int previous = (block + kBlocks - 1) % kBlocks;
      for (int t = 0; t < kThreads; ++t) {
        next[block * kThreads + t] =
            value[block * kThreads + t] + value[previous * kThreads + kThreads - 1 - t];
      }
    }
    value.swap(next);
  }
  float everything = 0;
  for (size_t i = 0; i < size; ++i) {
    for (int block = 0; block < kBlocks; ++block) {
      expected[i] += value[block * kThreads + i % kThreads];
    }
    everything += expected[i];
  }
  return finish(nullptr, out.values() == expected && sum.values()[0] == everything);
}

int run_cluster_kernel(Bug bug) {
  const ClusterRun run = run_clusters(4, true, bug);
  return finish(run.error, run.states_right && run.mail_right);
}

}  // namespace

int main(int argc, char** argv) {
  Bug bug;
  if (argc == 2 && strcmp(argv[1], "--list") == 0) {
    for (const char* name : kNames) puts(name);
    return 0;
  }
  if (argc != 2 || !find(argv[1], bug)) {
    fprintf(stderr, "usage: planted_bugs NAME, or --list\n");
    return 2;
  }
#if defined(CUDA_ON_CPU)
  if (bug >= Bug::kStackOverflow) return run_misuse(bug);
#endif
  // Runs all of them even if the first has gone wrong, so that it does not hide the others.
  const int block_result = run_block_kernel(bug);
  const int matrix_result = run_matrix_kernel(bug);
  const int grid_result = run_grid_kernel(bug);
  const int cluster_result = run_cluster_kernel(bug);
  for (const int result : {block_result, matrix_result, grid_result, cluster_result}) {
    if (result != 0) return result;
  }
  if (bug == Bug::kNone) printf("nothing planted, nothing found\n");
  return 0;
}
